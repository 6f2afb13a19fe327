"""An export is checked where no server is, against its seal and heads kept elsewhere."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from tapster.client.audit import check_export
from tapster.contract.audit import WHOLE, Verdict
from tapster.contract.errors import TapsterError
from tapster.core.crypto import Signer
from tapster.tenancy.audit import service
from tapster.tenancy.audit.store import Selection
from tests.tenancy.audit.conftest import Ledger, request

COUNT = 9


@pytest.fixture
def full(ledger: Ledger) -> Ledger:
    """Nine lines of two tenants, and a refusal of nobody's."""
    for at in range(COUNT - 1):
        ledger.grow(1, "default" if at % 3 else "berlin", first=at)
    ledger.record.ended(request("GET", "/models", tenant=""), 401)
    ledger.keep_head()
    return ledger


def export(full: Ledger, view: str = WHOLE, **wanted: Any) -> Path:
    path = full.home / "export.jsonl"
    pieces = service.export(full.db, full.record.heads, view, Selection(**wanted))
    path.write_bytes(b"".join(pieces))
    return path


def check(full: Ledger, path: Path, **given: Any) -> Verdict:
    return check_export(path, full.heads_file(), key=full.record.heads.public, **given)


def edit(path: Path, change: Any) -> None:
    """Let `change` have the file's lines, decoded."""
    found = [json.loads(line) for line in path.read_text().splitlines()]
    found = change(found) or found
    path.write_text("".join(json.dumps(line) + "\n" for line in found))


def test_an_export_of_everything_is_whole(full: Ledger) -> None:
    seen: list[tuple[int, int]] = []
    path = export(full)
    verdict = check(full, path, on_progress=lambda *at: seen.append(at))
    assert (verdict.ok, verdict.lines, verdict.heads, verdict.faults) == (True, COUNT, 1, [])
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["number"] for row in rows[:-1]] == list(range(1, COUNT + 1))
    assert rows[-1]["complete"]
    assert rows[0]["after"]["trusted_keys"][0]["name"] == "n0"
    edit(path, lambda rows: None)  # spelled with spaces: JSON all the same
    assert check(full, path).ok


def test_a_tenant_checks_its_own_lines_and_sees_no_others(full: Ledger) -> None:
    path = export(full, "berlin")
    verdict = check(full, path)
    assert (verdict.ok, verdict.lines) == (True, 3)
    assert "default" not in path.read_text()
    own = full.home / "mine.jsonl"
    head = service.head(full.db, full.record.heads, "berlin")
    own.write_text(json.dumps(vars(head)) + "\n")
    assert check_export(path, own).heads == 1
    full.grow(1, "berlin", first=40)
    assert check_export(export(full, "berlin"), own).ok
    assert export(full, "berlin", tenant="default").read_text().count("\n") == 1


@pytest.mark.parametrize(
    ("wanted", "count"),
    [
        ({"action": "POST"}, COUNT - 1),
        ({"action": "%"}, 0),
        ({"who": "anonymous"}, 1),
        ({"tenant": "berlin"}, 3),
        ({"since": 0, "until": 10**18}, COUNT),
        ({"until": 5}, 0),
    ],
)
def test_a_selection_has_its_lines_and_no_more(
    full: Ledger, wanted: dict[str, Any], count: int
) -> None:
    path = export(full, **wanted)
    verdict = check(full, path)
    assert (verdict.ok, verdict.lines) == (True, count)
    if count:
        edit(path, lambda rows: rows[1:])
        assert not check(full, path).ok


@pytest.mark.parametrize("view", [WHOLE, "berlin"])
@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows[1:],
        lambda rows: rows[:1] + rows[2:],
        lambda rows: rows[:-2] + rows[-1:],
        lambda rows: [rows[1], rows[0], *rows[2:]],
        lambda rows: [rows[0], *rows],
        lambda rows: rows[0].update(who="other"),
        lambda rows: rows[1].update(client="10.0.0.1"),
        lambda rows: rows[1].update(after=None),
        lambda rows: rows[1].update(object="x"),
        lambda rows: rows[1].update(salt="", client="", object="", before=None, after=None),
        lambda rows: rows[1].update(at=rows[1]["at"] + 0.001),
        lambda rows: rows[1].update(own_previous="0" * 63 + "1"),
        lambda rows: rows[1].update(hash="nonsense"),
        lambda rows: rows[1].pop("hash") and None,
        lambda rows: rows[-1].update(lines=rows[-1]["lines"] + 1),
        lambda rows: rows[-1].update(complete=False),
        lambda rows: rows[-1].update(digest="0" * 64),
        lambda rows: rows[-1]["head"].update(number=2),
        lambda rows: rows[-1]["head"].update(view="other"),
        lambda rows: rows[-1].update(view="other"),
        lambda rows: rows[-1].update(signature="00"),
    ],
)
def test_a_changed_export_is_found(full: Ledger, change: Any, view: str) -> None:
    path = export(full, view)
    edit(path, change)
    verdict = check(full, path)
    assert not verdict.ok
    assert verdict.faults


def test_an_export_signed_by_somebody_else_is_found(full: Ledger, tmp_path: Path) -> None:
    full.record.heads._signer = Signer.of(tmp_path / "other.key")
    full.record.heads.public = full.record.heads._signer.public
    path = export(full)
    assert check_export(path).ok, "by its own word"
    mine = Signer.of(full.home / "audit.key").public
    assert not check_export(path, key=mine).ok
    assert not check_export(path, full.heads_file()).ok
    for typed in ("signing.key", mine[:-1]):
        with pytest.raises(TapsterError, match="not an Ed25519 public key"):
            check_export(path, key=typed)


def test_lines_cut_off_before_the_export_are_found_by_the_heads(full: Ledger) -> None:
    full.tamper("delete from audit_lines where number > 6")
    full.tamper("delete from audit_details where number > 6")
    full.tamper("update audit_heads set number = 6, hash = (select hash from audit_lines"
                " where number = 6)")  # fmt: skip
    path = export(full)
    assert check_export(path).ok
    (fault,) = check(full, path).faults
    assert fault.number == 7
    assert "lines 7 to 9 were cut off" in fault.problem


def test_heads_of_later_lines_say_nothing_of_an_export(full: Ledger) -> None:
    path = export(full)
    full.grow(2, first=90)
    full.keep_head()
    assert check(full, path).ok


def test_an_erased_tenants_export_is_whole(full: Ledger) -> None:
    with full.db.write() as tx:
        service.erase(tx, "berlin")
    for view in (WHOLE, "berlin"):
        verdict = check(full, export(full, view))
        assert (verdict.ok, verdict.destroyed) == (True, 3)


@pytest.mark.parametrize("content", ["", "\n", "nonsense", '{"a": 1}\n', "[" * 100_000])
def test_what_is_no_export_is_refused(full: Ledger, content: str) -> None:
    path = full.home / "odd.jsonl"
    path.write_text(content)
    with pytest.raises(TapsterError, match="does not end with a seal"):
        check_export(path)
    with pytest.raises(TapsterError, match="cannot be read"):
        check_export(full.home / "absent")
    with pytest.raises(TapsterError, match="cannot be read"):
        check_export(export(full), full.home / "absent")


def test_pages_are_read_one_by_one(full: Ledger) -> None:
    """Memory stays where it is: an export is a stream."""
    for _ in range(6):
        drafts = 500
        for at in range(drafts):
            full.record.ended(request("DELETE", "/x/{name}", tenant=f"t{at}", name="n" * 250), 404)
        full.record.beat()
    pieces = service.export(full.db, full.record.heads, WHOLE, Selection())
    sizes = [len(next(pieces))]
    tracemalloc.start()
    sizes += [len(piece) for piece in pieces]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(sizes) > 2_000_000
    assert peak < 8_000_000
    assert full.verdict().lines == COUNT + 3000
