"""Shares, canaries, rollbacks and switches under load, one after another."""

import time
from dataclasses import dataclass, field
from typing import Final

import tapster
from tests.conftest import Server
from tests.faults.scenarios import models
from tests.faults.scenarios.kills import deploy, port_of, requests_to
from tests.faults.scenarios.load import Load, percentile

MODEL: Final = "total"
RATE: Final = 110.0
# What each version adds.
BIASES: Final = {"1": 0.0, "2": 10.0, "3": 20.0}


@dataclass
class Rollouts:
    """What callers saw in all; seconds that each change took until traffic had switched; the 99th
    percentile of answers without and with changes."""

    answered: int = 0
    statuses: set[int] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)
    versions: dict[str, int] = field(default_factory=dict)
    changes: dict[str, list[float]] = field(default_factory=dict)
    p99: tuple[float, float] = (0.0, 0.0)


def roll_out(server: Server, seconds: float) -> Rollouts:
    """Change what an endpoint serves without pause, so long."""
    for bias in BIASES.values():
        deploy(server, MODEL, models.total(bias))
    seen = Rollouts()
    load = Load(port_of(server), requests_to(server, MODEL), rate=RATE, reuse=100, biases=BIASES)
    with tapster.connect(server.url, key=server.key) as client, load:

        def change(name: str) -> None:
            began = time.monotonic()
            if name == "a share":
                client.deploy(f"{MODEL}@2", MODEL, weight=30)
            elif name == "other shares":
                client.endpoint_set(MODEL, weights={f"{MODEL}@2": 50, f"{MODEL}@3": 50})
            elif name == "a canary's first step":
                client.deploy(f"{MODEL}@1", MODEL, canary=[20, 100])
            elif name == "a switch":
                client.deploy(f"{MODEL}@3", MODEL)
            else:
                client.rollback(MODEL)
            seen.changes.setdefault(name, []).append(time.monotonic() - began)

        client.deploy(f"{MODEL}@1", MODEL)
        began = time.monotonic()
        time.sleep(min(seconds / 4, 20.0))
        begun = time.monotonic()
        while time.monotonic() < begun + seconds:
            for name in ("a share", "other shares", "a rollback", "a switch"):
                change(name)
                time.sleep(0.2)
            change("a canary's first step")
            time.sleep(0.5)
            change("a rollback")
    calm = [answer.took for answer in load.good(began, begun)]
    seen.p99 = (percentile(calm, 0.99), percentile([a.took for a in load.good(begun)], 0.99))
    seen.answered, seen.versions = len(load.answers), dict(load.versions)
    seen.statuses = {answer.status for answer in load.answers}
    seen.failures = [*load.wrong, *map(str, load.broken)] + ["refused"] * load.refused
    return seen
