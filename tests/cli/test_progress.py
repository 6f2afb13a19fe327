"""Progress without a terminal, and what Ctrl-C leaves behind."""

import pytest

from tapster.cli.progress import shown
from tapster.contract.control import Job, JobStatus
from tapster.contract.errors import TapsterError


def _job(status: JobStatus, progress: float, phase: str, message: str = "") -> Job:
    return Job(
        id="job_1",
        tenant="default",
        kind="train",
        status=status,
        spec={},
        priority=0,
        attempt=1,
        max_attempts=3,
        time_limit=None,
        memory_limit=None,
        progress=progress,
        phase=phase,
        message=message,
        created=0.0,
        started=None,
        finished=None,
        result=None,
        error=None,
    )


def test_a_line_is_printed_for_each_phase_and_quarter(capsys: pytest.CaptureFixture[str]) -> None:
    with shown("train wine") as bar:
        bar.job(_job("queued", 0.0, "queued"))
        for step in range(101):
            bar.job(_job("running", step / 100, "searching", f"\x1b[2Jtrial {step}"))
        bar.job(_job("succeeded", 1.0, "done"))
    streams = capsys.readouterr()
    assert streams.out == ""
    lines = streams.err.splitlines()
    assert lines[0] == "train wine: queued 0%"
    assert lines[1] == "train wine: running searching 0%: \ufffd[2Jtrial 0"
    assert lines[-1] == "train wine: succeeded done 100%"
    assert len(lines) == 7


def _end(job: Job, error: BaseException) -> None:
    with shown("train wine") as bar:
        bar.job(job)
        raise error


def test_ctrl_c_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        _end(_job("running", 0.5, "searching"), KeyboardInterrupt())
    told = capsys.readouterr().err
    assert "job_1 goes on" in told
    assert "tapster jobs show job_1 --follow" in told
    assert "tapster jobs cancel job_1" in told


def test_a_failed_job_names_its_log(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TapsterError):
        _end(_job("failed", 0.5, "failed"), TapsterError("invalid", "no"))
    assert "tapster jobs logs job_1" in capsys.readouterr().err
