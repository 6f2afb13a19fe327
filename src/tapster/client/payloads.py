"""The verbs over payloads: have them logged, read them, agree, delete."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tapster.client.calling import Answer, Caller, listed
from tapster.client.saving import save
from tapster.client.transport import spell
from tapster.contract.control import Endpoint


class PayloadVerbs(Caller):
    """See Client."""

    def endpoint_log(
        self,
        name: str,
        *,
        sample: float | None = None,
        redact: Sequence[str] | None = None,
        expressions: Sequence[str] = (),
        drop: Sequence[str] = (),
        mask: Sequence[str] = (),
        hashed: Sequence[str] = (),
        size: int | None = None,
        keep: float | None = None,
    ) -> Endpoint:
        """Have a share of an endpoint's requests and answers logged, redacted before.

        `redact`: patterns to take out of texts (email, iban, card, ip, phone: all of them if not
        given; secrets always are), `expressions`: RE2 of one's own. Columns or tensors in `drop`
        are left out, those in `mask` replaced by a word, in `hashed` by a keyed hash. `size`: bytes
        of a payload at most; `keep`: seconds until it is deleted, a week if not given.
        """
        given: dict[str, Any] = {"sample": sample, "size": size, "keep": keep}
        body = {part: value for part, value in given.items() if value is not None}
        if redact is not None:
            body["patterns"] = listed(redact)
        lists = {"expressions": expressions, "drop": drop, "mask": mask, "hash": hashed}
        body |= {part: listed(values) for part, values in lists.items() if values}
        return self._call(Endpoint, "PUT", f"/endpoints/{spell(name)}/logging", body)

    def endpoint_log_off(self, name: str) -> Endpoint:
        """Have nothing more of an endpoint logged; what is there stays until its time is up."""
        return self._call(Endpoint, "DELETE", f"/endpoints/{spell(name)}/logging")

    def payloads(self, endpoint: str, *, since: float = 0.0, limit: int = 20) -> list[Answer]:
        """What was logged of an endpoint from `since` (seconds since 1970) on, newest first."""
        params = {"since": since, "limit": limit}
        return self._call(list[Answer], "GET", f"/payloads/{spell(endpoint)}", params=params)

    def payloads_export(self, endpoint: str, path: str | Path, *, since: float = 0.0) -> Path:
        """Write what was logged as JSON lines, oldest first, to a file, whole or not at all."""
        return save(path, self.payloads_stream(endpoint, since=since))

    def payloads_stream(self, endpoint: str, *, since: float = 0.0) -> Iterator[bytes]:
        """What `payloads_export` writes, piece by piece as it comes."""
        path = f"/payloads/{spell(endpoint)}/export"
        params = {"since": since}
        with self._transport.stream(path, params=params, timeout=300.0) as response:
            yield from response.iter_bytes()

    def payloads_delete(self, endpoint: str) -> Answer:
        """Delete what was logged of an endpoint so far."""
        return self._call(Answer, "DELETE", f"/payloads/{spell(endpoint)}")

    def payloads_agree(self, endpoint: str) -> Answer:
        """Let the owner of a shared endpoint log what one's own tenant asks of it."""
        return self._call(Answer, "PUT", f"/payloads/{spell(endpoint)}/agreement")

    def payloads_disagree(self, endpoint: str) -> Answer:
        """Let the owner of a shared endpoint log nothing of one's own any more."""
        return self._call(Answer, "DELETE", f"/payloads/{spell(endpoint)}/agreement")
