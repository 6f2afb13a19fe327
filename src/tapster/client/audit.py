"""The verbs over the record of changes and refusals; an export is checked without a server."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, BinaryIO, Final

from tapster.client.calling import Caller
from tapster.client.saving import save
from tapster.contract.audit import (
    AuditLine,
    Checker,
    Fault,
    Head,
    Seal,
    Verdict,
    checked_heads,
    head_message,
    head_of,
    line_of,
    seal_message,
)
from tapster.contract.errors import TapsterError

CheckProgress = Callable[[int, int], None]
_LONGEST: Final = 1 << 20  # bytes of a line: more is no export
_KEY: Final = re.compile(r"[0-9a-fA-F]{64}")


class AuditVerbs(Caller):
    """See Client."""

    def audit_list(
        self,
        *,
        tenant: str = "",
        since: float | None = None,
        until: float | None = None,
        action: str = "",
        who: str = "",
        before: int = 0,
        limit: int = 50,
    ) -> list[AuditLine]:
        """Lines, newest first: the tenant's own, or all for the installation's auditor.

        `since` and `until` in seconds since 1970; `action` is a part of one, `who` a key's or a
        member's id. `before` goes on below a line's number.
        """
        asked = _asked(tenant, since, until, action, who)
        params = {**asked, "limit": limit, **({"before": before} if before else {})}
        return self._call(list[AuditLine], "GET", "/audit", params=params)

    def audit_head(self) -> Head:
        """The newest line's number and hash, signed. Keep it to find out later what was cut off."""
        return self._call(Head, "GET", "/audit/head")

    def audit_verify(self, on_progress: CheckProgress | None = None) -> Verdict:
        """Have the server check every line; `on_progress` sees how many it has, of how many."""
        import msgspec

        with self._transport.stream("/audit/verify", timeout=300.0) as response:
            for text in response.iter_lines():
                found = json.loads(text)
                if "faults" in found:
                    return msgspec.convert(found, Verdict)
                if on_progress is not None:
                    on_progress(found["checked"], found["last"])
        raise TapsterError("unavailable", "the server ended the check early", hint="try again")

    def audit_export(
        self,
        path: str | Path,
        *,
        tenant: str = "",
        since: float | None = None,
        until: float | None = None,
        action: str = "",
        who: str = "",
    ) -> Path:
        """Write lines as JSON, oldest first, and a signed seal to a file, whole or not at all."""
        return save(path, self._export(_asked(tenant, since, until, action, who)))

    def audit_stream(
        self,
        *,
        tenant: str = "",
        since: float | None = None,
        until: float | None = None,
        action: str = "",
        who: str = "",
    ) -> Iterator[bytes]:
        """What `audit_export` writes, piece by piece as it comes."""
        yield from self._export(_asked(tenant, since, until, action, who))

    def _export(self, params: dict[str, Any]) -> Iterator[bytes]:
        with self._transport.stream("/audit/export", params=params, timeout=300.0) as response:
            yield from response.iter_bytes()


def check_export(
    path: str | Path,
    heads: str | Path | None = None,
    *,
    key: str = "",
    on_progress: CheckProgress | None = None,
) -> Verdict:
    """Check an exported file, and against heads kept elsewhere. Asks no server.

    `key` is the public key that must have signed (64 hex digits); without it the seal's own is
    believed, and the verdict is worth no more than that. Raises TapsterError(invalid) for a file
    that is no export, and for what is no key.
    """
    if key and not _KEY.fullmatch(key.strip()):
        raise TapsterError(
            "invalid",
            "this is not an Ed25519 public key in hex (64 digits)",
            hint="`key` of each line of audit/heads.jsonl in the home is the public key",
            field="key",
        )
    seal = _seal(Path(path))
    public = key.strip().lower() or seal.head.key
    wrong: list[str] = []
    with ExitStack() as open_files:
        file = open_files.enter_context(_opened(Path(path)))
        kept: Iterator[Head] = iter(())
        if heads is not None:
            lines = _whole(open_files.enter_context(_opened(Path(heads))))
            kept = checked_heads(lines, Path(heads).name, public, _verify, wrong)
        # Heads of later lines than the export's tell nothing of it, unless they are older than it.
        known = (h for h in kept if h.number <= seal.head.number or h.at <= seal.head.at)
        checker = Checker(seal.view, known, complete=seal.complete)
        digest = _check_lines(file, Path(path).stat().st_size, checker, on_progress)
        _check_seal(seal, public, digest, checker)
        verdict = checker.verdict()
    faults = [*verdict.faults, *(Fault(0, problem) for problem in wrong)]
    return replace(verdict, ok=not faults, faults=faults)


def _check_lines(
    file: BinaryIO, total: int, checker: Checker, on_progress: CheckProgress | None
) -> str:
    """Check every line but the last, which is the seal; a digest of their hashes (hex)."""
    over, read = hashlib.sha256(), 0
    for text in file:
        read += len(text)
        if read >= total:
            break
        line = _line(text, checker)
        if line is not None:
            over.update(bytes.fromhex(line.hash))
            checker.take(line)
        if on_progress is not None and checker.lines % 1000 == 0:
            on_progress(read, total)
    return over.hexdigest()


def _whole(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Lines that a crash did not cut short."""
    return (line for line in lines if line.endswith(b"\n"))


def _check_seal(seal: Seal, public: str, digest: str, checker: Checker) -> None:
    signed = _verify(public, seal.head.signature, head_message(seal.head))
    if seal.head.key != public or not signed:
        checker.fault(0, "the seal's head is not signed with this key: it is forged")
    elif not _verify(public, seal.signature, seal_message(seal)):
        checker.fault(0, "the seal is not signed with this key: it is forged")
    if seal.complete and checker.last < seal.head.number:
        last = seal.head.number
        checker.fault(checker.last + 1, f"lines up to {last}, which the seal names, were cut off")
    if (seal.lines, seal.digest) != (checker.lines, digest):
        checker.fault(0, f"the file has {checker.lines} lines and the seal is about {seal.lines}")


def _line(text: bytes, checker: Checker) -> AuditLine | None:
    try:
        return line_of(json.loads(text))
    except (ValueError, RecursionError):
        checker.fault(checker.last + 1, "what stands there is no line")
        return None


def _seal(path: Path) -> Seal:
    """The last line of an export."""
    with _opened(path) as file:
        file.seek(max(0, path.stat().st_size - _LONGEST))
        text = file.read().rstrip(b"\n").rpartition(b"\n")[2]
    try:
        found = json.loads(text)
        head = head_of(found["head"])
        rest = {each.name: found[each.name] for each in fields(Seal) if each.name != "head"}
        return Seal(head=head, **rest)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise TapsterError(
            "invalid",
            f"{path.name} does not end with a seal: it is no export, or not a whole one",
            hint="export again: tapster audit export FILE",
            field="file",
        ) from None


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise TapsterError("invalid", f"{str(path)!r} cannot be read: {error.strerror}") from None


def _verify(public: str, signature: str, message: bytes) -> bool:
    from tapster.core.crypto import verify

    return verify(public, signature, message)


def _asked(
    tenant: str, since: float | None, until: float | None, action: str, who: str
) -> dict[str, Any]:
    """The filters of a query, without those not given."""
    given = {"tenant": tenant, "since": since, "until": until, "action": action, "who": who}
    return {name: value for name, value in given.items() if value not in {None, ""}}
