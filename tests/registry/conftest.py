"""A new installation's parts, and a way to run the import job as the claim loop does."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tapster.contract.control import ModelVersion
from tapster.core.blobs import LocalBlobs
from tapster.core.crypto import Signer
from tapster.core.db import Database
from tapster.core.parts import Parts
from tapster.core.settings import load
from tapster.core.uploads import Uploads
from tapster.jobs.context import JobContext
from tapster.registry import importing, packages, service
from tests.runtimes.graphs import sealed

TENANT = "default"


class Installation:
    """Real parts in a folder, with the verbs that tests need."""

    def __init__(self, home: Path, database_url: str = "") -> None:
        home.mkdir()
        self.home = home
        self.parts = Parts(
            settings=load({}, home=home),
            db=Database(database_url or f"sqlite:///{home / 'tapster.db'}"),
            blobs=LocalBlobs(home / "blobs"),
            signer=Signer.of(home / "signing.key"),
            uploads=Uploads(home / "uploads"),
        )
        self.parts.db.migrate()
        self._made = 0

    def fresh(self) -> Path:
        """A path that nothing lies at yet."""
        self._made += 1
        return self.home / f"work-{self._made}"

    def add(self, model: str = "m", tenant: str = TENANT, **sealing: Any) -> ModelVersion:
        """Seal, publish and register a package."""
        folder = self.fresh()
        sealed(folder, **{"created": float(self._made), **sealing})
        package = packages.publish(self.parts, tenant, folder)
        with self.parts.db.write() as tx:
            return service.register(
                tx,
                tenant,
                model=model,
                digest=package["digest"],
                manifest=packages.manifest_of(package),
                bytes=package["bytes"],
                signer=package["signer"],
                job="job_1",
            )

    def export(self, version: ModelVersion) -> Path:
        """The exported file of a version."""
        folder = self.parts.blobs.get(packages.key_of(TENANT, version.digest))
        path = self.fresh().with_suffix(".tapster")
        path.write_bytes(b"".join(packages.export(folder)))
        assert path.stat().st_size == packages.export_size(folder)
        return path

    def bring(self, model: str, *files: Path, tenant: str = TENANT) -> dict[str, Any]:
        """Run the import job on files, step by step as the claim loop does; its result."""
        upload = self.parts.uploads.create(tenant)
        sent = self.parts.uploads.check(tenant, upload)
        for file in files:
            shutil.copy(file, sent / file.name)
        with self.parts.db.write() as tx:
            job = service.submit_import(tx, tenant, model, upload, self.parts.signer.public)
        with self.parts.db.read() as tx:
            order = service.load_import(tx, job)
        context = JobContext(work=self.fresh(), inputs={"file": sent})
        context.work.mkdir()
        result = importing.run(order["task"], context)
        result = service.publish_import(self.parts, job, result, context.work / "out")
        with self.parts.db.write() as tx:
            first = service.apply_import(tx, job, result)
            assert service.apply_import(tx, job, result) == first
        return first

    def resolve(self, ref: str, tenant: str = TENANT) -> ModelVersion:
        """A version by reference."""
        with self.parts.db.read() as tx:
            return service.resolve(tx, tenant, ref)


@pytest.fixture
def install(tmp_path: Path) -> Iterator[Callable[[str], Installation]]:
    """Make installations by name."""
    made: list[Installation] = []

    def make(name: str) -> Installation:
        made.append(Installation(tmp_path / name))
        return made[-1]

    yield make
    for installation in made:
        installation.parts.db.close()


@pytest.fixture
def here(install: Callable[[str], Installation]) -> Installation:
    """One installation."""
    return install("here")
