"""Runs the training job in this process, on a table in a folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tapster.contract.errors import TapsterError
from tapster.jobs.context import JobContext
from tapster.training import runner

Train = Callable[..., dict[str, Any]]


class Trained:
    """What a run left: its result and the package's folder."""

    def __init__(self, result: dict[str, Any], package: Path) -> None:
        self.result, self.package = result, package


class Workshop:
    """Trains as the claim loop would, without a database."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._runs = 0

    def train(self, frame: pl.DataFrame, parts: list[int] | None = None, **task: Any) -> Trained:
        """Run the job; `parts` is a recorded split."""
        self._runs += 1
        work = self._root / f"run-{self._runs}"
        inputs = {"data": work / "data"}
        inputs["data"].mkdir(parents=True)
        frame.write_parquet(inputs["data"] / "data.parquet")
        if parts is not None:
            inputs["split"] = work / "split"
            inputs["split"].mkdir()
            column = pl.DataFrame({"part": pl.Series(parts, dtype=pl.UInt8)})
            column.write_parquet(inputs["split"] / "split.parquet")
        context = JobContext(work=work, inputs=inputs)
        result = runner.run({"target": "target", "model": "m", **task}, context)
        return Trained(result, work / "out" / "package")

    def refusal(self, frame: pl.DataFrame, **task: Any) -> TapsterError:
        """The error that the job ends with."""
        with pytest.raises(TapsterError) as caught:
            self.train(frame, **task)
        return caught.value


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    """A place to train in."""
    return Workshop(tmp_path)
