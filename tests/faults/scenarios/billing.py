"""What callers were answered, and what is on the bill, while processes are killed."""

import random
import signal
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from tests.conftest import Server
from tests.faults.scenarios import models
from tests.faults.scenarios.kills import Fleet, deploy, port_of, until
from tests.faults.scenarios.load import Load, cases

ENDPOINT: Final = "total"
FREE: Final = "free"
BUDGETED: Final = "budgeted"
# A control process and a worker are killed in turn, so many seconds apart on average.
BETWEEN: Final = 4.0
# The ledger is read so often before it is taken to be at rest, and waited for so many seconds.
QUIET: Final = 15
PATIENCE: Final = 60.0


@dataclass
class Account:
    """A key: what its callers saw, and what the ledger says."""

    key: str
    answered: int = 0
    cut_off: int = 0
    refused: int = 0
    other: set[int] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)
    billed: int = 0
    rows: int = 0


@dataclass
class Bills:
    """Both accounts, how often somebody was killed, and whether sums and lines are the same."""

    accounts: dict[str, Account]
    kills: int = 0
    differences: list[str] = field(default_factory=list)


def bill(server: Server, seconds: float, budget: int) -> Bills:
    """Call with two keys, one of them with `budget` requests a month, while processes are killed.

    Then the rest of the budget is used up, and the ledger is waited for.
    """
    deploy(server, ENDPOINT, models.total(0.0))
    api = Api(server)
    fleet = Fleet(server, 2)
    until(fleet.full, "two workers")
    before = max(fleet.plans())
    accounts = {name: Account(api.key(name)) for name in (FREE, BUDGETED)}
    api.limit(accounts[BUDGETED].key, budget)
    # A limit holds from when the workers know of it.
    until(lambda: min(fleet.plans()) >= before + 3, "the limit to be in force")
    seen = Bills(accounts)
    loads = {
        name: Load(
            port_of(server), cases(ENDPOINT, key=api.secrets[name]), rate=rate, connections=32
        )
        for name, rate in ((FREE, 150.0), (BUDGETED, 0.6 * budget / seconds))
    }
    with ExitStack() as running:
        for load in loads.values():
            running.enter_context(load)
        seen.kills = _kill(server, fleet, seconds)
        until(fleet.full, "two workers again")
    fleet.close()
    with Load(port_of(server), cases(ENDPOINT, key=api.secrets[BUDGETED]), connections=64) as rest:
        until(lambda: any(a.status == 429 for a in rest.answers), "the budget to be spent", 120)
        time.sleep(0.5)
    for name, load in (*loads.items(), (BUDGETED, rest)):
        _add(accounts[name], load)
    api.settle(seen)
    return seen


def _kill(server: Server, fleet: Fleet, seconds: float) -> int:
    """Kill workers and the control process by turns, at random moments; how often."""
    rng, end, kills = random.Random(4), time.monotonic() + seconds, 0
    while time.monotonic() < end:
        time.sleep(rng.uniform(0.5, 1.5) * BETWEEN)
        if kills % 2:
            victims = server.children("tapster.app")
        else:
            until(fleet.full, "two workers")
            victims = server.children("serving.worker")
        if victims:
            rng.choice(victims).send_signal(signal.SIGKILL)
            kills += 1
    return kills


def _add(account: Account, load: Load) -> None:
    account.answered += len(load.good())
    account.cut_off += len(load.broken)
    account.refused += sum(answer.status == 429 for answer in load.answers)
    account.other |= {answer.status for answer in load.answers} - {200, 429}
    account.wrong += load.wrong


class Api:
    """The control API, as somebody uses it whose server is being killed."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._headers = {"Authorization": f"Bearer {server.key}"}
        self.secrets: dict[str, str] = {}

    def key(self, name: str) -> str:
        """Make a consumer's key; its id."""
        made = self._ask("POST", "/keys", {"name": name, "role": "consumer"})
        self.secrets[name] = made["key"]
        return str(made["id"])

    def limit(self, key: str, requests: int) -> None:
        """Let a key make so many requests a month."""
        limit = {"metric": "requests", "amount": requests, "period": "month"}
        self._ask("POST", "/limits", {"limits": [limit], "key": key})

    def settle(self, seen: Bills) -> None:
        """Wait until the ledger has all answers and has not grown for a while, and read it."""
        end = time.monotonic() + PATIENCE
        last: Any = None
        quiet = 0
        while quiet < QUIET or (self._missing(seen) and time.monotonic() < end):
            rows = self._ask("GET", "/usage?by=key")["rows"]
            quiet = quiet + 1 if rows == last else 0
            last = rows
            for account in seen.accounts.values():
                for row in rows:
                    if row["key"] == account.key:
                        account.billed, account.rows = row["requests"], row["rows"]
            time.sleep(0.2)
        seen.differences = self._ask("GET", "/usage/check")["differences"]

    def _missing(self, seen: Bills) -> bool:
        """Whether somebody was answered more often than is billed."""
        return any(account.billed < account.answered for account in seen.accounts.values())

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        """One call, tried again while nobody answers."""
        end = time.monotonic() + 60
        while True:
            try:
                answer = httpx.request(
                    method,
                    f"{self._server.url}/api/v1{path}",
                    headers=self._headers,
                    json=body,
                    timeout=30,
                )
                if answer.status_code < 500:
                    assert answer.is_success, answer.text
                    return answer.json()
            except httpx.TransportError:
                pass
            assert time.monotonic() < end, "the control API is gone"
            time.sleep(0.2)
