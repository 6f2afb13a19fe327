"""Job processes on this machine, each the leader of a session of its own."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil

from tapster.jobs.executors import Status


class LocalExecutor:
    """An Executor that forks. A job's process ends with the process that started it."""

    def start(self, folder: Path) -> subprocess.Popen[bytes]:
        """See Executor. Must be called from a thread that lives as long as this process."""
        with (folder.parent / "log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "tapster.jobs.child", str(folder), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder,
                start_new_session=True,
                env=_environment(),
            )

    def poll(self, handle: subprocess.Popen[bytes]) -> Status:
        """See Executor."""
        code = handle.poll()
        if code is not None:
            return Status(code)
        memory = 0
        with suppress(psutil.Error):
            process = psutil.Process(handle.pid)
            for member in (process, *process.children(recursive=True)):
                with suppress(psutil.Error):
                    memory += member.memory_info().rss
        return Status(None, memory)

    def cancel(self, handle: subprocess.Popen[bytes]) -> None:
        """See Executor."""
        with suppress(ProcessLookupError):
            os.killpg(handle.pid, signal.SIGKILL)
        handle.wait()


def _environment() -> dict[str, str]:
    """The server's environment without its secrets."""
    hidden = ("TAPSTER_KEY", "TAPSTER_DATABASE_URL", "TAPSTER_MASTER_KEY")
    return {
        name: value
        for name, value in os.environ.items()
        if name not in hidden and not name.startswith("TAPSTER_MASTER_KEY_")
    }
