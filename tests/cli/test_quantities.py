"""Amounts as people type them."""

import pytest

from tapster.cli import quantities


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2s", 2), ("500ms", 0.5), ("10m", 600), ("1h", 3600), ("0", 0), ("1.5", 1.5), ("2 s", 2)],
)
def test_durations(text: str, seconds: float) -> None:
    assert quantities.duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "size"),
    [("1G", 1 << 30), ("512M", 512 << 20), ("1GiB", 1 << 30), ("64kb", 64 << 10), ("100", 100)],
)
def test_sizes(text: str, size: int) -> None:
    assert quantities.size(text) == size


def test_settings_of_an_endpoint() -> None:
    given = ["deadline=2s", "queue=100", "window=default", "memory=1G", "shadow=none"]
    assert quantities.settings([*given, "weights=A@1=90,A@2=10%"]) == {
        "options": {"deadline": 2.0, "queue": 100, "window": None, "memory": 1 << 30},
        "shadows": [],
        "weights": {"A@1": 90.0, "A@2": 10.0},
    }
    assert quantities.settings(["shadow=A@1,A@2"]) == {"shadows": ["A@1", "A@2"]}
    assert quantities.settings(["speed=fast"]) == {"options": {"speed": "fast"}}


def test_steps() -> None:
    assert quantities.steps("5, 25%,100") == [5, 25, 100]
