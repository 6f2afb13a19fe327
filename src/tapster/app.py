"""The composition root: settings in, a running control process out.

The only file that chooses concrete parts, and the only upward tables (HANDLERS, ERASERS).
"""

import asyncio
import socket
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Final

import msgspec
from fastapi import FastAPI
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from tapster import api
from tapster.contract.control import DEFAULT_TENANT
from tapster.contract.errors import TapsterError
from tapster.contract.usage import Metric
from tapster.core import plugins, sealed, settings
from tapster.core.blobs import BlobStore, write_atomically
from tapster.core.crypto import Signer
from tapster.core.db import Database, Watch
from tapster.core.envelope import masters_of
from tapster.core.listening import CertifiedProtocol, TlsServer
from tapster.core.parts import Parts
from tapster.core.processes import die_with_parent
from tapster.core.sealed import SealedBlobs
from tapster.core.settings import Settings
from tapster.core.telemetry import configure, logger
from tapster.core.tls import HTTP, Certificate
from tapster.core.uploads import Uploads
from tapster.core.vault import Vault
from tapster.datasets import routes as dataset_routes
from tapster.datasets import service as datasets
from tapster.deployments import routes as deployment_routes
from tapster.deployments import service as deployments
from tapster.deployments.payloads import keeping as payload_files
from tapster.deployments.payloads import routes as payload_routes
from tapster.deployments.payloads import service as payloads
from tapster.deployments.reports import Reports
from tapster.deployments.sharing import routes as sharing_routes
from tapster.jobs import routes as job_routes
from tapster.jobs import service as jobs
from tapster.jobs.claims import ClaimLoop
from tapster.jobs.service import Handler
from tapster.observed import Observed
from tapster.registry import routes as registry_routes
from tapster.registry import service as registry
from tapster.tenancy import routes as tenancy_routes
from tapster.tenancy import service as tenancy
from tapster.tenancy.audit import routes as audit_routes
from tapster.tenancy.audit import service as audit
from tapster.tenancy.audit.acts import acting
from tapster.tenancy.audit.heads import Heads
from tapster.tenancy.audit.record import Record
from tapster.tenancy.datakeys import keyring
from tapster.tenancy.datakeys import routes as datakey_routes
from tapster.tenancy.datakeys.service import Resealing, Sealed
from tapster.tenancy.erasure import routes as erasure_routes
from tapster.tenancy.erasure.service import Endings, Eraser
from tapster.tenancy.ledger import routes as ledger_routes
from tapster.tenancy.ledger import service as ledger
from tapster.tenancy.limits import routes as limit_routes
from tapster.tenancy.limits.quotas import Measure
from tapster.tenancy.shares import service as shares
from tapster.training import routes as training_routes
from tapster.training import service as training

log = logger(__name__)

HANDLERS: Final[dict[str, Handler]] = {
    **datasets.HANDLERS,
    **registry.HANDLERS,
    **training.HANDLERS,
}

# What slices do when a tenant ends, besides losing its rows.
ERASERS: Final[dict[str, Eraser]] = {
    "jobs": Eraser(stop=jobs.stop_all, folders=jobs.folders),
    "shares": Eraser(stop=shares.stop, rows=shares.erase),
    "payloads": Eraser(folders=payload_files.folders),
    "ledger": Eraser(rows=ledger.anonymise),
    "audit": Eraser(rows=audit.erase),
}

# What slices have sealed of a tenant's, to be sealed anew when it is given another key.
SEALED: Final[dict[str, Sealed]] = {
    "jobs": jobs.sealed,
    "uploads": lambda parts, tenant: parts.uploads.pieces(tenant),
    "blobs": lambda parts, tenant: sealed.pieces(parts.blobs, tenant, _named(parts)),
}

_SETTLE: Final = 0.05
_SAMPLE: Final = 60.0
_EXPIRE: Final = 30.0


def build(config: Settings) -> FastAPI:
    """The control application over an installation's home, which is made if it is new."""
    parts = open_parts(config)
    record = parts.db.witness
    assert isinstance(record, Record)
    reports = Reports()
    agent_key = tenancy.ensure_key_file(config.home / "agent.key")
    executor = plugins.load("tapster.executors", config.executor)()

    async def settle() -> None:
        watch, heard, since = Watch(parts.db), -1, time.time()
        while True:
            if reports.count != heard or watch.news():
                heard = reports.count
                await asyncio.to_thread(_settle, parts, reports, since)
            await asyncio.sleep(_SETTLE)

    async def show_back() -> None:
        while True:
            await asyncio.to_thread(_sample_storage, parts)
            await asyncio.sleep(_SAMPLE)

    async def forget_payloads() -> None:
        while True:
            await asyncio.sleep(_EXPIRE)
            await asyncio.to_thread(_forget_payloads, parts)

    async def end_tenants() -> None:
        await erasure_routes.go_on(parts, Endings(parts, ERASERS))

    def followed() -> list[int]:
        return [worker.plan for worker in reports.workers()]

    async def reseal() -> None:
        await datakey_routes.go_on(parts, Resealing(parts, SEALED, followed))

    works = [
        *(ClaimLoop(parts, HANDLERS, executor).run, settle, show_back, forget_payloads),
        *(end_tenants, reseal),
    ]

    app = api.build(
        parts,
        [
            dataset_routes.routes(parts),
            training_routes.routes(parts),
            *registry_routes.routes(parts, deployments.in_use, deployments.lent),
            *deployment_routes.routes(parts, reports),
            sharing_routes.routes(parts),
            *payload_routes.routes(parts),
            payload_routes.agent_routes(parts, agent_key),
            deployment_routes.agent_routes(parts, agent_key, reports),
            job_routes.routes(parts),
            *tenancy_routes.routes(parts),
            erasure_routes.routes(parts),
            datakey_routes.routes(parts),
            *ledger_routes.routes(parts, deployments.callee),
            audit_routes.routes(parts, record.heads),
            limit_routes.routes(parts, deployments.callee),
            limit_routes.agent_routes(parts, agent_key),
        ],
        [*works, record.run],
        record,
    )
    app.state.followed = followed
    return app


def open_parts(config: Settings) -> Parts:
    """Open the database (migrating it), the blobs and the keys; collect what crashes left."""
    config.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    _check_database(config)
    db = Database(config.database_url or f"sqlite:///{config.home / 'tapster.db'}")
    try:
        db.migrate()
    except DBAPIError as error:
        raise TapsterError(
            "unavailable",
            f"the database cannot be opened: {error.orig}",
            hint="`tapster doctor` checks the installation",
        ) from None
    db.witness = _record(config, db)
    try:
        parts = _parts(config, db)
    except BaseException:
        db.close()
        raise
    admin = tenancy.ensure_key_file(config.home / "admin.key")
    with acting(DEFAULT_TENANT, "keys.admin", "key=key_admin"), parts.db.write() as tx:
        tenancy.ensure_admin(tx, admin)
    if parts.db.sqlite:
        _collect(parts)
    return parts


def _record(config: Settings, db: Database) -> Record:
    """The record of who does what, and where its heads are kept."""
    folders = [config.home / "audit"]
    if config.audit_heads:
        folders.append(Path(config.audit_heads).expanduser().absolute())
    return Record(db, Heads(Signer.of(config.home / "audit.key"), folders))


def _parts(config: Settings, db: Database) -> Parts:
    blobs: BlobStore = plugins.load("tapster.blob_stores", config.blob_store)(config.home / "blobs")
    masters, vault = masters_of(config), Vault.of(config)
    keys = keyring.opened(db, masters)
    if masters is not None:
        masters.current.leave_name(config.home)
    if keys is not None and vault is not None:
        blobs = SealedBlobs(blobs, keys, vault, config.home / "sealing")
    uploads = Uploads(config.home / "uploads", keys)
    return Parts(
        settings=config,
        db=db,
        blobs=blobs,
        signer=Signer.of(config.home / "signing.key"),
        uploads=uploads,
        measures=_measures(uploads),
        keys=keys,
        vault=vault,
    )


def _measures(uploads: Uploads) -> dict[Metric, Measure]:
    """What a tenant uses now of what has a limit."""

    def stored(tx: Connection, tenant: str) -> int:
        of_rows = datasets.stored(tx, tenant), registry.stored(tx, tenant), payloads.stored(tx)
        return sum(found.get(tenant, 0) for found in of_rows) + uploads.size(tenant)

    return {"storage": stored, "jobs": jobs.unfinished, "models": deployments.loaded}


def _check_database(config: Settings) -> None:
    """Refuse SQLite in a home whose blobs are named by rows elsewhere: it would collect them."""
    marker = config.home / "postgresql"
    if config.database_url and not config.database_url.startswith("sqlite"):
        write_atomically(marker, b"the rows of this home are in a PostgreSQL database\n")
    elif marker.exists():
        raise TapsterError(
            "conflict",
            "this home belongs to a PostgreSQL database, and TAPSTER_DATABASE_URL is not set",
            hint="set TAPSTER_DATABASE_URL as before, or choose another home",
            field="database_url",
        )
    elif (
        not config.database_url
        and not _filled(config.home / "tapster.db")
        and any(config.home.glob("blobs/*/*/*"))
    ):
        raise TapsterError(
            "conflict",
            "this home has datasets or packages, and the database that names them is gone",
            hint="bring `tapster.db` back from a backup, or choose another home",
            field="home",
        )


def _filled(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _named(parts: Parts) -> set[str]:
    """The keys of all blobs that rows name."""
    with parts.db.read() as tx:
        return datasets.blob_keys(tx) | registry.blob_keys(tx) | payloads.blob_keys(tx)


def _collect(parts: Parts) -> None:
    """Remove blobs and uploads that no row names. Only the home's sole owner may do this."""
    used = _named(parts)
    with parts.db.read() as tx:
        uploads = jobs.uploads_in_use(tx)
    parts.blobs.sweep()
    parts.uploads.sweep(uploads)
    for key in list(parts.blobs.keys()):
        if key not in used:
            parts.blobs.delete(key)


def _settle(parts: Parts, reports: Reports, since: float) -> None:
    """Move deployments on, taking the write lock only when there is something to write."""
    with parts.db.read() as tx:
        if not deployments.unsettled(tx, reports):
            return
    with acting(DEFAULT_TENANT, "deployments.settle"), parts.db.write() as tx:
        deployments.settle(tx, reports, parts.settings.workers, since)


def _sample_storage(parts: Parts) -> None:
    """Once an hour, put what every tenant stores on its showback."""
    with parts.db.read() as tx:
        if not ledger.sample_due(tx):
            return
        sizes = Counter(datasets.stored(tx))
        sizes.update(registry.stored(tx))
        sizes.update(payloads.stored(tx))
    with parts.db.write() as tx:
        ledger.sample_storage(tx, sizes)


def _forget_payloads(parts: Parts) -> None:
    """Remove payloads that are to be kept no longer; what cannot be done now is done later."""
    try:
        payload_files.sweep(parts, time.time(), parts.settings.payload_bytes)
    except TapsterError as error:
        log.warning("payloads stay for now", reason=str(error))


def main(descriptor: int, parent: int) -> int:
    """Serve the control API on an inherited socket until SIGTERM."""
    import uvicorn

    die_with_parent(parent)
    config = settings.load()
    configure(config.log_level, config.log_format, "control")
    vault = Vault.of(config)
    if vault is not None:
        vault.adopt()
    certificate = Certificate(config) if config.encrypted else None
    server = TlsServer(
        uvicorn.Config(
            Observed(build(config), config),
            log_config=None,
            access_log=False,
            timeout_keep_alive=int(config.keep_alive),
            timeout_graceful_shutdown=2,
            proxy_headers=bool(config.trusted_proxies),
            forwarded_allow_ips=config.trusted_proxies,
            server_header=False,
            http=CertifiedProtocol if certificate else "auto",
            ssl_context_factory=certificate.factory(HTTP, clients=True) if certificate else None,
        ),
        certificate,
    )
    server.run(sockets=[socket.socket(fileno=descriptor)])
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
    except TapsterError as failure:
        print(msgspec.json.encode(failure.as_dict()).decode(), file=sys.stderr)
        sys.exit(1)
