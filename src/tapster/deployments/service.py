"""Deploy, roll back, delete; the plan that follows from the rows; what reports change.

A deployment is two-phase. *Prepare*: the plan asks every worker to load the new package, verify
it and replay its parity vectors. Only when all have, *switch*: the plan moves the endpoint. One
worker's refusal ends the deployment and leaves the old version serving.
"""

import re
import time
from collections.abc import Collection
from typing import Any, Final

from sqlalchemy import Connection

from tapster.contract.control import Endpoint, ModelVersion
from tapster.contract.errors import TapsterError
from tapster.contract.plan import EndpointPlan, PackageRef, ServingPlan, Variant, WorkerState
from tapster.deployments import store
from tapster.registry import service as registry
from tapster.tenancy import service as tenancy

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
PATIENCE: Final = 120.0


def deploy(tx: Connection, tenant: str, name: str, reference: str) -> Endpoint:
    """Begin to serve a model version under an endpoint's name, which is made if it is new.

    Raises TapsterError(not_found) for the version, (unprocessable) for one whose graph is not
    vetted, (invalid) for the name and (conflict) while another deployment is under way.
    """
    if not _NAME.fullmatch(name):
        raise TapsterError(
            "invalid",
            f"{name!r} cannot be an endpoint's name",
            hint="use up to 100 letters, digits, dots, dashes and underscores",
            field="endpoint",
        )
    version = registry.resolve(tx, tenant, reference)
    registry.check_servable(version)
    if store.get(tx, tenant, name) is None:
        store.add(tx, tenant, name)
    alias = reference.partition(":")[2]
    return _begin(tx, tenant, name, _target(version, alias))


def rollback(tx: Connection, tenant: str, name: str) -> Endpoint:
    """Begin to serve what the endpoint served before. Raises TapsterError(conflict) if nothing."""
    endpoint = show(tx, tenant, name)
    if endpoint.previous is None:
        raise TapsterError(
            "conflict", f"endpoint {name} has served nothing before", hint="deploy a version"
        )
    held = f"{endpoint.previous['model']}@{endpoint.previous['version']}"
    registry.check_servable(registry.resolve(tx, tenant, held))
    # Pinned: an endpoint rolled back from an alias's version must not follow the alias again.
    return _begin(tx, tenant, name, {**endpoint.previous, "alias": ""})


def show(tx: Connection, tenant: str, name: str) -> Endpoint:
    """One endpoint. Raises TapsterError(not_found)."""
    endpoint = store.get(tx, tenant, name)
    if endpoint is None:
        raise TapsterError(
            "not_found", f"there is no endpoint {name!r}", hint="see `tapster endpoints list`"
        )
    return endpoint


def listing(tx: Connection, tenant: str) -> list[Endpoint]:
    """A tenant's endpoints by name."""
    return store.listing(tx, tenant)


def delete(tx: Connection, tenant: str, name: str) -> None:
    """Stop serving and forget the endpoint. Raises TapsterError(not_found)."""
    show(tx, tenant, name)
    store.remove(tx, tenant, name)
    tenancy.revise(tx, tenant, f"endpoint {name} deleted")


def in_use(tx: Connection, tenant: str, version: ModelVersion) -> list[str]:
    """Names of the endpoints that serve a version or are about to."""
    named = (version.model, version.version)
    return [
        endpoint.name
        for endpoint in store.listing(tx, tenant)
        for held in (endpoint.serving, endpoint.pending)
        if held is not None and (held["model"], held["version"]) == named
    ]


def plan(tx: Connection, public_key: str) -> ServingPlan:
    """What every data plane must make true."""
    endpoints, packages, signers = [], {}, {public_key}
    for row in store.everywhere(tx):
        for held in (row["serving"], row["pending"]):
            if held is not None:
                key = f"{row['tenant']}/packages/{held['digest']}"
                packages[held["digest"]] = PackageRef(held["digest"], key)
                signers.update(registry.trusted(tx, row["tenant"]))
        if row["serving"] is not None:
            endpoints.append(_endpoint_plan(tx, row))
    return ServingPlan(
        number=tenancy.revision(tx),
        endpoints=tuple(endpoints),
        packages=tuple(packages.values()),
        keys=tenancy.grants(tx),
        signers=tuple(sorted(signers)),
    )


def settle(
    tx: Connection, workers: Collection[WorkerState], expected: int, since: float = 0.0
) -> bool:
    """Move every deployment on as far as the workers' reports allow; True if anything changed.

    `since`: when this process began to listen; nobody could report to it before.
    """
    changed = False
    for row in store.everywhere(tx):
        if row["phase"] == "prepare":
            patient = time.time() - max(row["updated"], since) <= PATIENCE
            changed |= _settle_prepare(tx, row, workers, expected, patient)
        elif row["phase"] == "switch":
            changed |= _settle_switch(tx, row, workers, expected)
        else:
            changed |= _follow_alias(tx, row)
    return changed


def unsettled(tx: Connection) -> bool:
    """Whether `settle` may have something to do: cheap, and without the write lock."""
    return any(row["phase"] or _moved(tx, row) is not None for row in store.everywhere(tx))


def _settle_prepare(
    tx: Connection, row: Any, workers: Collection[WorkerState], expected: int, patient: bool
) -> bool:
    tenant, name, pending = row["tenant"], row["name"], row["pending"]
    digest = pending["digest"]
    # A worker that has not applied this revision may still report what became of an earlier try.
    current = [worker for worker in workers if worker.plan >= row["revision"]]
    states = [state for worker in current for state in worker.packages if state.digest == digest]
    refusal = next((state.error for state in states if state.state == "failed"), None)
    if refusal is None and not patient:
        refusal = "the data plane did not load it in time"
    if refusal is not None:
        _refuse(tx, row, refusal)
        return True
    if len(states) < expected or any(state.state != "ready" for state in states):
        return False
    revision = tenancy.revise(tx, tenant, f"endpoint {name} switches")
    same = row["serving"] is not None and row["serving"]["digest"] == pending["digest"]
    store.change(
        tx,
        tenant,
        name,
        phase="switch",
        revision=revision,
        serving=pending,
        pending=None,
        previous=row["previous"] if same else row["serving"],
    )
    return True


def _settle_switch(
    tx: Connection, row: Any, workers: Collection[WorkerState], expected: int
) -> bool:
    applied = [worker for worker in workers if worker.plan >= row["revision"]]
    if len(applied) < expected:
        return False
    store.change(tx, row["tenant"], row["name"], phase="", status="live")
    return True


def _follow_alias(tx: Connection, row: Any) -> bool:
    version = _moved(tx, row)
    if version is None:
        return False
    _begin(tx, row["tenant"], row["name"], _target(version, row["serving"]["alias"]))
    return True


def _moved(tx: Connection, row: Any) -> ModelVersion | None:
    """The version that the endpoint's alias has moved to, unless it was just refused."""
    held = row["serving"]
    if held is None or not held["alias"]:
        return None
    try:
        version = registry.resolve(tx, row["tenant"], f"{held['model']}:{held['alias']}")
        registry.check_servable(version)
    except TapsterError:
        return None
    refused = (row["error"] or {}).get("digest")
    return None if version.digest in {held["digest"], refused} else version


def _refuse(tx: Connection, row: Any, reason: str) -> None:
    tenant, name, pending = row["tenant"], row["name"], row["pending"]
    kept = row["serving"]
    error = TapsterError(
        "unprocessable",
        f"{pending['model']}@{pending['version']} was refused: {reason}",
        hint=f"{kept['model']}@{kept['version']} serves on" if kept else "nothing serves here yet",
    )
    store.change(
        tx,
        tenant,
        name,
        phase="",
        status="live" if kept else "failed",
        pending=None,
        error={**error.as_dict(), "digest": pending["digest"]},
    )
    tenancy.revise(tx, tenant, f"endpoint {name}: {pending['model']} refused")


def _begin(tx: Connection, tenant: str, name: str, target: dict[str, Any]) -> Endpoint:
    endpoint = show(tx, tenant, name)
    if endpoint.status == "loading":
        raise TapsterError(
            "conflict",
            f"endpoint {name} is still switching",
            hint="wait until `tapster endpoints show` says live, then try again",
        )
    revision = tenancy.revise(tx, tenant, f"endpoint {name} prepares {target['model']}")
    store.change(
        tx,
        tenant,
        name,
        status="loading",
        phase="prepare",
        revision=revision,
        pending=target,
        error=None,
    )
    return show(tx, tenant, name)


def _target(version: ModelVersion, alias: str) -> dict[str, Any]:
    return {
        "model": version.model,
        "version": version.version,
        "alias": alias,
        "digest": version.digest,
    }


def _endpoint_plan(tx: Connection, row: Any) -> EndpointPlan:
    held = row["serving"]
    return EndpointPlan(
        id=row["id"],
        tenant=row["tenant"],
        name=row["name"],
        variants=(Variant(held["model"], held["version"], held["digest"]),),
        labels=registry.aliases(tx, row["tenant"], held["model"]),
    )
