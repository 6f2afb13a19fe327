"""Settings: defaults, variables, overrides, refusals."""

from pathlib import Path

import pytest

from tapster.contract.errors import TapsterError
from tapster.core.settings import Settings, load


def test_overrides_beat_variables_beat_defaults(tmp_path: Path) -> None:
    environment = {"TAPSTER_PORT": "9", "TAPSTER_WORKERS": "3", "TAPSTER_NO_AUTH": "true"}
    settings = load(environment, home=tmp_path, port=7, rest_port=None)
    assert (settings.port, settings.rest_port, settings.workers) == (7, 8501, 3)
    assert settings.no_auth
    assert settings.url == "http://127.0.0.1:7"


def test_a_child_reads_the_same_settings(tmp_path: Path) -> None:
    settings = load({}, home=tmp_path, workers=4, inline_budget=0.25)
    assert load(settings.environment()) == settings


@pytest.mark.parametrize(
    ("variable", "text", "complaint"),
    [
        ("TAPSTER_PORT", "http", "is not a whole number"),
        ("TAPSTER_NO_AUTH", "maybe", "is not true or false"),
        ("TAPSTER_KEEP_ALIVE", "long", "is not a number"),
        ("TAPSTER_LOG_FORMAT", "xml", "is not one of auto, json, text"),
        ("TAPSTER_ACCESS_LOG", "1.5", "is not from 0 to 1"),
        ("TAPSTER_OTEL_SAMPLE", "nan", "is not from 0 to 1"),
    ],
)
def test_an_unreadable_variable_is_named(variable: str, text: str, complaint: str) -> None:
    with pytest.raises(TapsterError, match=complaint) as caught:
        load({variable: text})
    assert caught.value.field == variable


def test_no_auth_needs_loopback() -> None:
    with pytest.raises(TapsterError, match="everybody on the network"):
        load({}, host="0.0.0.0", no_auth=True)
    assert load({}, host="::1", no_auth=True).url == "http://[::1]:8000"
    assert Settings().loopback


@pytest.mark.parametrize("url", ["10.0.0.5:8000", "control:8000", "ftp://control", "https://"])
def test_control_elsewhere_is_named_by_a_url(url: str) -> None:
    """Whoever left the scheme out had the agent send its key to this machine's port 80."""
    with pytest.raises(TapsterError, match="not a server's URL"):
        load({"TAPSTER_CONTROL_URL": url})
    assert load({"TAPSTER_CONTROL_URL": "https://[::1]:8000"}).control_url
