"""The record of who did what: its lines, how they are chained, and how a chain is checked.

Line n is hashed over the hash of line n-1, so that no line can be changed, left out, put in or
moved without every later hash. What a line tells of persons and things (`Details`) is kept apart
and enters by a salted digest only, so that it can be destroyed and the chain still be checked.
A head is a signed statement of the newest line; kept elsewhere, it also tells of lines cut off.
"""

import hashlib
import hmac
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any, Final

FORMAT: Final = 1
GENESIS: Final = "0" * 64
WHOLE: Final = "*"  # the view of the whole installation; else a view is a tenant's
ERASED: Final = "audit.erase"  # the act after which a tenant's earlier details are gone
MOST_FAULTS: Final = 100
Verify = Callable[[str, str, bytes], bool]  # public key, signature (hex both), message


@dataclass(frozen=True)
class AuditLine:
    """One act. `at` is in seconds since 1970, `count` how many such attempts it stands for.

    `who` is a key's or member's id, `system` or `anonymous`; `status` and `code` are the outcome
    (an HTTP status, an error's code). `client` (an address), `object`, `before` and `after` are
    its details: with `salt` they make `details`, and are empty once they were destroyed.
    `previous` is the hash of the line before, `own_previous` of the tenant's line before.
    """

    number: int
    at: float
    tenant: str
    who: str
    action: str
    status: int
    code: str
    count: int
    details: str
    previous: str
    own_previous: str
    hash: str
    salt: str = ""
    client: str = ""
    object: str = ""
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None


@dataclass(frozen=True)
class Head:
    """The newest line of a view (`*` for all, else a tenant's), signed with the key `key`."""

    view: str
    number: int
    hash: str
    at: float
    key: str
    signature: str = ""


@dataclass(frozen=True)
class Seal:
    """The end of an export: how many lines it has, a digest of their hashes, the view's head.

    `complete` says that nothing was selected: every line of the view up to the head is there.
    """

    view: str
    complete: bool
    lines: int
    digest: str
    head: Head
    signature: str = ""


@dataclass(frozen=True)
class Fault:
    """Something wrong with the record: which line (0 for none), and what."""

    number: int
    problem: str


@dataclass(frozen=True)
class Verdict:
    """What a check found: how many lines and heads it saw, and the faults, at most a hundred."""

    ok: bool
    lines: int
    heads: int
    last: int
    faults: list[Fault] = field(default_factory=list)
    destroyed: int = 0


def micros(at: float) -> int:
    """Seconds as whole microseconds: what is hashed."""
    return round(at * 1_000_000)


def spelled(client: str, what: str, before: Any, after: Any) -> str:
    """Details as the text that is digested: JSON of an array of four, names sorted."""
    return json.dumps([client, what, before, after], sort_keys=True, separators=(",", ":"))


def details_digest(salt: str, text: str) -> str:
    """HMAC-SHA256 (hex) of spelled details; the salt is what nobody can guess them by."""
    return hmac.new(bytes.fromhex(salt), text.encode(), hashlib.sha256).hexdigest()


def line_hash(line: AuditLine) -> str:
    """A line's hash as it has to be."""
    parts = (
        line.number,
        micros(line.at),
        line.tenant,
        line.who,
        line.action,
        line.status,
        line.code,
        line.count,
        line.details,
        line.own_previous,
    )
    return chained(line.previous, parts)


def chained(previous: str, parts: Iterable[Any]) -> str:
    """SHA-256 (hex) of the hash before and a line's canonical form: a JSON array in ASCII."""
    text = json.dumps([FORMAT, *parts], separators=(",", ":"))
    return hashlib.sha256(bytes.fromhex(previous) + text.encode()).hexdigest()


def head_message(head: Head) -> bytes:
    """What a head's signature is over."""
    parts = ["tapster audit head", FORMAT, head.view, head.number, head.hash, micros(head.at)]
    return json.dumps([*parts, head.key], separators=(",", ":")).encode()


def seal_message(seal: Seal) -> bytes:
    """What a seal's signature is over: with the head's, everything."""
    parts = ["tapster audit export", FORMAT, seal.view, seal.complete, seal.lines, seal.digest]
    return json.dumps([*parts, seal.head.signature], separators=(",", ":")).encode()


def line_of(found: dict[str, Any]) -> AuditLine:
    """A line from its JSON object. Raises ValueError for something else."""
    try:
        line = AuditLine(**{each.name: found[each.name] for each in fields(AuditLine)})
        bytes.fromhex(line.previous + line.hash + line.salt)
        micros(line.at)
    except (KeyError, TypeError) as error:
        raise ValueError(str(error)) from None
    return line


def head_of(found: dict[str, Any]) -> Head:
    """A head from its JSON object. Raises ValueError for something else."""
    try:
        head = Head(**{each.name: found[each.name] for each in fields(Head)})
        micros(head.at)
    except (KeyError, TypeError) as error:
        raise ValueError(str(error)) from None
    if not isinstance(head.number, int) or not isinstance(head.signature, str):
        raise ValueError("not a head")
    return head


def checked_heads(
    lines: Iterable[bytes], where: str, public: str, verify: Verify, faults: list[str]
) -> Iterator[Head]:
    """The heads in lines of JSON that the key `public` has signed; the others are `faults`.

    The numbers of a view's heads rise. `where` names the file; `verify` checks a signature.
    """
    last: dict[str, int] = {}
    for at, text in enumerate(lines, 1):
        try:
            head = head_of(json.loads(text))
        except (ValueError, RecursionError):
            faults.append(f"line {at} of {where} is not a head")
            continue
        if head.key != public or not verify(public, head.signature, head_message(head)):
            faults.append(f"line {at} of {where} is not signed with this key: it is forged")
        elif head.number < last.get(head.view, 0):
            faults.append(
                f"line {at} of {where} is about line {head.number}, after one about line"
                f" {last[head.view]}: the record was cut back and written on"
            )
        else:
            last[head.view] = head.number
            yield head


class Checker:
    """Checks the lines of a view one by one, in order, against each other and against heads.

    `view` is `*` or a tenant; `complete` says that the lines are all there are, from the first.
    Heads of other views are passed over; those of this one come in order of their numbers. Memory
    grows with the number of tenants, not of lines.
    """

    def __init__(self, view: str, heads: Iterable[Head] = (), *, complete: bool = True) -> None:
        self.lines = self.heads = self.last = self.destroyed = 0
        self.faults: list[Fault] = []
        self._view, self._complete = view, complete
        self._heads: Iterator[Head] = iter(heads)
        self._head: Head | None = None
        self._hash = GENESIS
        self._own: dict[str, str] = {}
        self._gone: dict[str, int] = {}  # tenant: first line whose details are gone

    def take(self, line: AuditLine) -> None:
        """Check one line."""
        expected = self.last + 1
        if line.number <= self.last:
            self.fault(line.number, f"it comes after line {self.last}: lines were moved or added")
            return
        if self._view == WHOLE and self._complete and line.number > expected:
            self._missing(expected, line.number - 1)
        self._check_hash(line)
        if self._complete:
            self._check_links(line)
        self._check_details(line)
        self._check_heads(line)
        self._own[line.tenant] = self._hash = line.hash
        self.last, self.lines = line.number, self.lines + 1

    def verdict(self) -> Verdict:
        """The end: what is still owed is missing."""
        while (head := self._next_head(None)) is not None:
            if self._complete and head.number > self.last:
                self._cut_off(head)
                break
        if self._complete:
            for number in sorted(self._gone.values()):
                self.fault(number, "its details are missing, and its tenant was not erased since")
        return Verdict(
            not self.faults, self.lines, self.heads, self.last, self.faults, self.destroyed
        )

    def fault(self, number: int, problem: str) -> None:
        """Note something wrong."""
        if len(self.faults) < MOST_FAULTS:
            self.faults.append(Fault(number, problem))

    def _missing(self, first: int, last: int) -> None:
        some = f"lines {first} to {last} are" if last > first else "it is"
        self.fault(first, f"{some} missing")

    def _check_hash(self, line: AuditLine) -> None:
        if line_hash(line) != line.hash:
            self.fault(line.number, "it was changed: its hash is another's")

    def _check_links(self, line: AuditLine) -> None:
        """The line follows the one before it, and its tenant's one before."""
        if self._view == WHOLE and line.number == self.last + 1 and line.previous != self._hash:
            self.fault(line.number, "it does not follow the line before it: one was exchanged")
        own = self._own.get(line.tenant, GENESIS)
        if line.own_previous != own and (self._view != WHOLE or line.number == self.last + 1):
            self.fault(line.number, f"lines of tenant {line.tenant!r} before it are missing")

    def _check_details(self, line: AuditLine) -> None:
        if line.action == ERASED:
            self._gone.pop(line.tenant, None)
        if not line.salt:
            self._gone.setdefault(line.tenant, line.number)
            self.destroyed += 1
            return
        text = spelled(line.client, line.object, line.before, line.after)
        if details_digest(line.salt, text) != line.details:
            self.fault(line.number, "its details were changed")

    def _check_heads(self, line: AuditLine) -> None:
        while (head := self._next_head(line.number)) is not None:
            if head.number == line.number and head.hash != line.hash:
                self.fault(line.number, f"a head signed at {head.at:.0f} vouches for another line")
            elif head.number < line.number and self._view != WHOLE and self._complete:
                self.fault(head.number, f"it is missing: a head signed at {head.at:.0f} has it")

    def _next_head(self, limit: int | None) -> Head | None:
        """The next head of this view, if it is about a line up to `limit`."""
        while self._head is None:
            self._head = next(self._heads, None)
            if self._head is None:
                return None
            if self._head.view != self._view:
                self._head = None
        if limit is not None and self._head.number > limit:
            return None
        head, self._head = self._head, None
        self.heads += 1
        return head

    def _cut_off(self, head: Head) -> None:
        newest = head
        while (later := self._next_head(None)) is not None:
            newest = max(newest, later, key=lambda each: each.number)
        if self._view == WHOLE:
            what = f"lines {self.last + 1} to {newest.number} were cut off"
        else:
            what = f"lines after {self.last} up to {newest.number} were cut off"
        self.fault(self.last + 1, f"{what}: a head signed at {newest.at:.0f} has them")
