"""The demo, shortened: every wire gives the trained model's own answers."""

import json
import tempfile
from pathlib import Path

import pytest

from tapster.cli import demo


def test_the_demo_checks_every_wire_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert demo.run(as_json=True, seconds=4.0) == 0
    streams = capsys.readouterr()
    document = json.loads(streams.out)
    assert document["rows_checked"] >= 64
    assert set(document["largest_difference"]) == {
        "tapster predict",
        "Open Inference v2",
        "TF Serving v1",
    }
    assert document["metrics"]["roc_auc"]["value"] > 0.95
    assert document["faster"] > 0
    assert len(document["steps"]) == 7
    for told in ("1. Start Tapster", "mean radius", "same answers", "tapster up", "curl"):
        assert told in streams.err
    assert list(tmp_path.glob("tapster-demo-*")) == []
