"""`tapster deploy`: a version, a share, a shadow, a canary, an ensemble."""

from typing import Annotated, Any

import typer

from tapster.cli import quantities
from tapster.cli.output import Json, client, command, emit, say
from tapster.contract.control import Endpoint
from tapster.contract.errors import TapsterError

Models = Annotated[
    list[str], typer.Argument(metavar="NAME[@VERSION|:ALIAS]", help="What to serve.")
]
Weight = Annotated[
    float | None,
    typer.Option(metavar="PCT", help="Its share beside what serves; 100 replaces it."),
]
Shadow = Annotated[
    bool, typer.Option("--shadow", help="Send it copies of requests; it answers nobody.")
]
Steps = Annotated[
    str, typer.Option(metavar="STEPS", help="Shares that it grows by, such as 5,25,50,100.")
]
Fewest = Annotated[int | None, typer.Option(help="Requests that a step needs; 100 by default.")]
ErrorRate = Annotated[
    float | None,
    typer.Option(help="How much its error rate may exceed the others'; 0.01 by default."),
]
LatencyRatio = Annotated[
    float | None,
    typer.Option(help="How many times the others' its p95 and p99 may be; 1.5 by default."),
]
Together = Annotated[
    bool, typer.Option("--ensemble", help="Answer with the weighted mean: A@1=0.6 B@2=0.4.")
]


def add_to(root: typer.Typer) -> None:
    """Put `deploy` on the root."""
    command(
        root,
        "deploy",
        "tapster deploy wine-quality",
        "tapster deploy wine-quality:champion --endpoint wine",
        "tapster deploy wine-quality@3 --endpoint wine --weight 10",
        "tapster deploy wine-quality@3 --endpoint wine --canary 5,25,50,100 --follow",
        "tapster deploy forest@1=0.6 boosted@2=0.4 --endpoint wine --ensemble",
    )(deploy)


def deploy(
    models: Models,
    endpoint: Annotated[str, typer.Option(help="Where; the model's name by default.")] = "",
    *,
    weight: Weight = None,
    shadow: Shadow = False,
    canary: Steps = "",
    interval: Annotated[str, typer.Option(help="How long a step lasts; 60s by default.")] = "",
    min_requests: Fewest = None,
    max_error_rate: ErrorRate = None,
    max_latency_ratio: LatencyRatio = None,
    ensemble: Together = False,
    follow: Annotated[bool, typer.Option("--follow", help="Show a canary until it ends.")] = False,
    as_json: Json = False,
) -> None:
    """Serve a model at an endpoint; returns once traffic has switched."""
    rules = {
        "interval": quantities.duration(interval, "interval") if interval else None,
        "min_requests": min_requests,
        "max_error_rate": max_error_rate,
        "max_latency_ratio": max_latency_ratio,
    }
    given = {name: value for name, value in rules.items() if value is not None}
    _check(models, endpoint, ensemble=ensemble, canary=canary, rules=bool(given) or follow)
    ways: dict[str, Any] = {"weight": weight, "shadow": shadow}
    if canary:
        ways["canary"] = {"steps": quantities.steps(canary), **given}
    members = quantities.factors(models, "ensemble") if ensemble else {}
    with client() as tapster:
        if members:
            live = tapster.deploy_ensemble(members, endpoint)
        else:
            live = tapster.deploy(models[0], endpoint, **ways)
        if follow:
            live = tapster.rollout(live.name, _Progress().show)
        rest_url = tapster.rest_url
    _print(as_json, live, rest_url)


def _check(models: list[str], endpoint: str, *, ensemble: bool, canary: str, rules: bool) -> None:
    """Raise TapsterError(invalid) for what does not go together."""
    if not ensemble and len(models) > 1:
        raise TapsterError(
            "invalid",
            f"{models[1][:200]!r} is one model too many",
            hint="several are served together as: A@1=0.6 B@2=0.4 --endpoint E --ensemble",
        )
    if ensemble and not endpoint:
        raise TapsterError(
            "invalid", "an ensemble has no name of its own", hint="add --endpoint NAME"
        )
    if rules and not canary:
        raise TapsterError(
            "invalid", "there is no canary to follow or to rule", hint="add --canary 5,25,50,100"
        )


class _Progress:
    """A line on stderr whenever a canary's step, or what it waits for, has changed."""

    def __init__(self) -> None:
        self._last = ""

    def show(self, seen: Endpoint) -> None:
        """An endpoint as it is now."""
        from tapster.cli import traffic

        line = traffic.progress(seen)
        if line != self._last:
            self._last = line
            say(line)


def _print(as_json: bool, live: Endpoint, rest_url: str) -> None:
    from tapster.cli import traffic

    emit(as_json, live, lambda: traffic.deployed(live, rest_url))
