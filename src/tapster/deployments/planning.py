"""The plan that follows from the rows: what every data plane must make true."""

from sqlalchemy import Connection

from tapster.contract.plan import EndpointPlan, PackageRef, Price, ServingPlan, Variant
from tapster.deployments import options, store
from tapster.deployments.store import Row
from tapster.registry import service as registry
from tapster.tenancy import service as tenancy
from tapster.tenancy.erasure import service as erasure
from tapster.tenancy.ledger import service as ledger


def plan(tx: Connection, public_key: str) -> ServingPlan:
    """Endpoints that serve, packages that they need now or next, keys and trusted signers."""
    packages: dict[str, PackageRef] = {}
    endpoints = []
    signers = {public_key}
    prices = ledger.planned(tx)
    secrets = erasure.wrapped_keys(tx)
    for row in store.everywhere(tx):
        for held in row.sets:
            signers.update(registry.trusted(tx, row.tenant))
            for digest in sorted(held.digests):
                key = f"{row.tenant}/packages/{digest}"
                packages[digest] = PackageRef(digest, key, secrets.get(row.tenant, ""))
        if row.serving is not None:
            endpoints.append(_endpoint(tx, row, prices.get((row.tenant, row.name), ())))
    return ServingPlan(
        number=tenancy.revision(tx),
        endpoints=tuple(endpoints),
        packages=tuple(packages.values()),
        keys=tenancy.grants(tx),
        signers=tuple(sorted(signers)),
    )


def _endpoint(tx: Connection, row: Row, prices: tuple[Price, ...]) -> EndpointPlan:
    serving = row.serving
    assert serving is not None
    canary = row.rolling.canary.ref if row.rolling else ""
    split = serving.kind == "split"
    return EndpointPlan(
        id=row.id,
        tenant=row.tenant,
        name=row.name,
        variants=tuple(
            Variant(
                held.model,
                held.version,
                held.digest,
                held.weight,
                shadow=held.shadow,
                canary=held.ref == canary,
            )
            for held in serving.variants
        ),
        labels=registry.aliases(tx, row.tenant, serving.main.model) if split else {},
        kind=serving.kind,
        options=options.made(row.options or {}),
        version=serving.number,
        prices=prices,
    )
