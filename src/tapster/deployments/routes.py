"""Endpoints over HTTP, and the two routes that only the data plane's agent may call."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Final

import msgspec
from fastapi import APIRouter, Depends, Query, Request, Response
from msgspec.structs import asdict, replace

from tapster.contract.control import Endpoint, Principal
from tapster.contract.errors import TapsterError
from tapster.contract.plan import UsageBatch
from tapster.contract.usage import UsageReceipt, UsageReport
from tapster.core.db import Watch
from tapster.core.parts import Parts
from tapster.deployments import deltas, rollouts, service
from tapster.deployments.judgement import Rules
from tapster.deployments.reports import Reports
from tapster.deployments.wholes import Wholes
from tapster.tenancy.access import agent_only, need
from tapster.tenancy.in_force import InForce
from tapster.tenancy.ledger import service as ledger

_Reader = Annotated[Principal, Depends(need("endpoints:read"))]
_Writer = Annotated[Principal, Depends(need("endpoints:write"))]
_POLL = 0.05
# A difference (RFC 3229) rather than the whole.
DELTA: Final = 226
_DEFAULT = Rules()


@dataclass
class Canary:
    """A share that grows: `steps` in percent, each `interval` seconds and `min_requests` long.

    The version's error rate may exceed the others' by `max_error_rate`, its p95 and p99 latency be
    `max_latency_ratio` times theirs; else everything goes back.
    """

    steps: list[float] = field(default_factory=lambda: list(rollouts.STEPS))
    interval: float = _DEFAULT.interval
    min_requests: int = _DEFAULT.min_requests
    max_error_rate: float = _DEFAULT.max_error_rate
    max_latency_ratio: float = _DEFAULT.max_latency_ratio
    __pydantic_config__: ClassVar = {"extra": "forbid"}


@dataclass
class Deploy:
    """What to serve: `model` is NAME, NAME@VERSION or NAME:ALIAS.

    `weight` is its percentage beside what serves, 100 by default; with `shadow` it gets copies of
    requests instead, with `canary` a percentage that grows. `ensemble` names members and their
    factors, in place of `model`.
    """

    model: str = ""
    weight: float | None = None
    shadow: bool = False
    canary: Canary | None = None
    ensemble: dict[str, float] | None = None
    __pydantic_config__: ClassVar = {"extra": "forbid"}


@dataclass
class Change:
    """What to change of an endpoint.

    `options` by name, null for the default; `weights` of exactly the versions that are to answer
    (percent; factors of an ensemble); `shadows`, exactly those that are to get copies.
    """

    options: dict[str, Any] | None = None
    weights: dict[str, float] | None = None
    shadows: list[str] | None = None
    __pydantic_config__: ClassVar = {"extra": "forbid"}


def routes(parts: Parts, reports: Reports) -> list[APIRouter]:
    """The routes under /endpoints."""
    router = APIRouter(prefix="/endpoints", tags=["endpoints"])
    _reading(router, parts, reports)
    _deploying(router, parts)
    changing = APIRouter(prefix="/endpoints", tags=["endpoints"], route_class=InForce)
    _changing(changing, parts, reports)
    return [router, changing]


def _reading(router: APIRouter, parts: Parts, reports: Reports) -> None:
    def look(tenant: str, name: str) -> Endpoint:
        with parts.db.read() as tx:
            return service.show(tx, tenant, name, reports.totals(tenant, name))

    @router.get("")
    def list_endpoints(who: _Reader) -> list[Endpoint]:
        """List endpoints."""
        with parts.db.read() as tx:
            return service.listing(tx, who.tenant)

    @router.get("/{endpoint}")
    async def show_endpoint(
        who: _Reader,
        endpoint: str,
        request: Request,
        wait: Annotated[float, Query(ge=0, le=60)] = 0,
    ) -> Endpoint:
        """Show an endpoint; with `wait`, answer once no deployment is under way."""
        until = time.monotonic() + wait
        while True:
            seen = await asyncio.to_thread(look, who.tenant, endpoint)
            if seen.status != "loading" or time.monotonic() >= until:
                return seen
            if await request.is_disconnected():
                return seen
            await asyncio.sleep(_POLL)


def _deploying(router: APIRouter, parts: Parts) -> None:
    @router.post("/{endpoint}/deploy", status_code=202)
    def deploy(who: _Writer, endpoint: str, body: Deploy) -> Endpoint:
        """Begin to serve a model version; traffic moves once every worker has loaded it."""
        _check(body)
        with parts.db.write() as tx:
            if body.ensemble is not None:
                return service.deploy_ensemble(tx, who.tenant, endpoint, body.ensemble)
            if body.shadow:
                return service.shadow(tx, who.tenant, endpoint, body.model)
            if body.canary is not None:
                return service.roll_out(
                    tx,
                    who.tenant,
                    endpoint,
                    body.model,
                    steps=body.canary.steps,
                    rules=_rules(body.canary),
                )
            weight = 100.0 if body.weight is None else body.weight
            return service.deploy(tx, who.tenant, endpoint, body.model, weight)


def _changing(router: APIRouter, parts: Parts, reports: Reports) -> None:
    @router.patch("/{endpoint}")
    def change(who: _Writer, endpoint: str, body: Change) -> Endpoint:
        """Change options at once; begin to change shares or shadows."""
        if body.weights is not None and body.shadows is not None:
            raise TapsterError(
                "invalid", "change weights or shadows, one after the other", field="shadows"
            )
        with parts.db.write() as tx:
            if body.options:
                service.set_options(tx, who.tenant, endpoint, body.options)
            if body.weights is not None:
                service.set_weights(tx, who.tenant, endpoint, body.weights)
            if body.shadows is not None:
                service.set_shadows(tx, who.tenant, endpoint, body.shadows)
            totals = reports.totals(who.tenant, endpoint)
            return service.show(tx, who.tenant, endpoint, totals)

    @router.post("/{endpoint}/rollback", status_code=202)
    def rollback(who: _Writer, endpoint: str) -> Endpoint:
        """Begin to serve what was served before; a rollout that is under way ends at once."""
        with parts.db.write() as tx:
            return service.rollback(tx, who.tenant, endpoint)

    @router.delete("/{endpoint}")
    def delete(who: _Writer, endpoint: str) -> dict[str, str]:
        """Stop serving and forget the endpoint."""
        with parts.db.write() as tx:
            service.delete(tx, who.tenant, endpoint)
        return {"deleted": endpoint}


def _rules(canary: Canary) -> Rules:
    return Rules(
        interval=canary.interval,
        min_requests=canary.min_requests,
        max_error_rate=canary.max_error_rate,
        max_latency_ratio=canary.max_latency_ratio,
    )


def _check(body: Deploy) -> None:
    """Raise TapsterError(invalid) for what cannot be asked at once."""
    ways = {
        "weight": body.weight is not None,
        "shadow": body.shadow,
        "canary": body.canary is not None,
        "ensemble": body.ensemble is not None,
    }
    given = [name for name, there in ways.items() if there]
    if len(given) > 1:
        raise TapsterError(
            "invalid", f"{given[0]} and {given[1]} exclude each other", field=given[1]
        )
    if bool(body.model) == (body.ensemble is not None):
        raise TapsterError(
            "invalid",
            "name a model version, or the members of an ensemble",
            hint="NAME, NAME@VERSION or NAME:ALIAS",
            field="model",
        )


def agent_routes(parts: Parts, agent_key: str, reports: Reports) -> APIRouter:
    """The routes under /internal: plan down, usage up. Not part of the public description."""
    router = APIRouter(
        prefix="/internal",
        include_in_schema=False,
        dependencies=[Depends(agent_only(agent_key))],
    )

    wholes = Wholes(parts)

    def plan(after: int, mark: str) -> Response | None:
        with parts.db.read() as tx:
            if not deltas.news(tx, after, mark):
                return None
            found = deltas.delta(tx, parts.signer.public, after, mark)
        if found is not None:
            return Response(found, DELTA, {"IM": "tapster-plan"}, "application/json")
        return Response(wholes.newest(), media_type="application/octet-stream")

    @router.get("/plan")
    async def get_plan(
        request: Request,
        after: int = -1,
        mark: Annotated[str, Query(max_length=16)] = "",
        wait: Annotated[float, Query(ge=0, le=60)] = 0,
    ) -> Response:
        """The plan once it is another than `after` with this `mark`, whole (200) or as a delta
        (226); 204 when it is not within `wait` seconds."""
        until, watch = time.monotonic() + wait, Watch(parts.db)
        while True:
            found = await asyncio.to_thread(plan, after, mark) if watch.news() else None
            if found is not None:
                return found
            if time.monotonic() >= until or await request.is_disconnected():
                return Response(status_code=204)
            await asyncio.sleep(_POLL)

    def count(report: UsageReport) -> UsageReceipt:
        with parts.db.read() as tx:
            if not ledger.news(tx, report):
                return UsageReceipt(mark=report.mark)
        receipts = []
        for portion in ledger.portions(report):
            with parts.db.write() as tx:
                receipts.append(ledger.take(tx, portion))
        return replace(receipts[-1], again=receipts[0].again)

    @router.post("/report")
    async def report(request: Request) -> dict[str, Any]:
        """What became of the plan, and how much was used; answers which segments are counted."""
        try:
            batch = msgspec.json.decode(await request.body(), type=UsageBatch)
        except msgspec.MsgspecError as error:
            raise TapsterError("invalid", f"not a usage batch: {error}") from None
        reports.put(batch)
        if batch.ledger:
            request.app.state.uses.counted(batch.ledger)
        receipt = UsageReceipt()
        if batch.ledger:
            receipt = await asyncio.to_thread(count, batch.ledger)
        return {"status": "ok", **asdict(receipt)}

    return router
