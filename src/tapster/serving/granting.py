"""Asking the control plane for more of a budget: by the agent, ahead of need and at once."""

import http.client
import threading
import time
from collections.abc import Callable
from datetime import date
from typing import Final

import msgspec

from tapster.contract.usage import Ask, Grant, GrantAnswer, GrantRequest
from tapster.core.telemetry import logger
from tapster.serving.journal import spelled
from tapster.serving.wallet import ANSWERED, ASKED, SPENT, WANTED, Entry, Wallet

log = logger(__name__)

LOOK_SECONDS: Final = 0.01
RETRY_SECONDS: Final = 0.25
ANSWER_SECONDS: Final = 5.0
# What is spent is asked for again after so long, as long as somebody wants it (nanoseconds).
SPENT_PAUSE: Final = 1_000_000_000
# Budgets that are asked for in one go.
MOST: Final = 1000
_ANSWERS: Final = msgspec.json.Decoder(GrantAnswer)
_FIRST: Final = date(1970, 1, 1)


class Granting:
    """Keeps a machine's wallet filled. `ask` sends a request's body (JSON) to the control plane and
    returns the status and the body of its answer; it raises OSError or HTTPException. `report` is
    called before a limit is asked for the first time, and says whether all that was used until then
    has arrived: what was used before a limit was set counts, too.
    """

    def __init__(
        self,
        wallet: Wallet,
        machine: str,
        ask: Callable[[bytes], tuple[int, bytes]],
        report: Callable[[], bool] = lambda: True,
    ) -> None:
        self._wallet = wallet
        self._machine = machine
        self._ask = ask
        self._report = report
        self._known: set[str] = set()
        self._seen = -1
        self._due = 0.0

    def run(self, stop: threading.Event) -> None:
        """Ask whenever somebody wants more, until `stop` is set."""
        while not stop.wait(LOOK_SECONDS):
            try:
                self.turn()
            except OSError as error:
                log.error("the wallet cannot be read", reason=str(error))
                stop.wait(RETRY_SECONDS)

    def turn(self) -> None:
        """Look once, and ask if somebody wants more."""
        wallet = self._wallet
        if self._seen < 0:
            self._set_clock()
        demands, now = wallet.demands, time.monotonic()
        if now < self._due or (demands == self._seen and not self._due):
            return
        moment = time.monotonic_ns()
        wanted = list(wallet.wanted())
        due = [each for each in wanted if _due(each[2], moment)][:MOST]
        if due and not self._exchange(due):
            wallet.missed()
            self._due = time.monotonic() + RETRY_SECONDS
            return
        # What is not due yet is looked at again, whether or not anybody wants more meanwhile.
        self._seen, self._due = demands, now + LOOK_SECONDS if len(due) < len(wanted) else 0.0

    def _set_clock(self) -> None:
        """Times that are yet to come are of the clock of before the machine began anew."""
        for day in self._wallet.days():
            table, now = self._wallet.open(day), time.monotonic_ns()
            for entry in table.all().values() if table is not None else ():
                if entry[ANSWERED] > now:
                    entry[ANSWERED] = 0
                entry[ASKED] = min(entry[ASKED], now)

    def _exchange(self, wanted: list[tuple[str, int, Entry]]) -> bool:
        """Ask for what is wanted; whether there was an answer to all."""
        limits = {limit for limit, _, _ in wanted}
        if not limits <= self._known and not self._report():
            known = [each for each in wanted if each[0] in self._known]
            if known:
                self._exchange(known)
            return False
        asks = tuple(Ask(limit, spelled(day), entry[WANTED]) for limit, day, entry in wanted)
        try:
            status, body = self._ask(msgspec.json.encode(GrantRequest(self._machine, asks)))
            if status != 200:
                raise http.client.HTTPException(f"the control plane answered {status}")
            answer = _ANSWERS.decode(body)
        except (OSError, http.client.HTTPException, msgspec.MsgspecError) as error:
            log.debug("no grants", reason=str(error))
            return False
        granted = {(grant.limit, grant.day): grant for grant in answer.grants}
        for ask in asks:  # of a limit that is gone there is no more, as of one that is spent
            grant = granted.get((ask.limit, ask.day)) or Grant(ask.limit, ask.day, 0, spent=True)
            self._wallet.answered(_number(ask.day), grant)
        self._known |= limits
        return True


def _due(entry: Entry, now: int) -> bool:
    """Whether to ask for more now."""
    return not entry[SPENT] or not 0 <= now - entry[ANSWERED] < SPENT_PAUSE


def _number(day: str) -> int:
    return (date.fromisoformat(day) - _FIRST).days
