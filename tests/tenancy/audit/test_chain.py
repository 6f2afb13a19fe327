"""Whoever changes the record is found, and so is the line."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tapster.contract.audit import GENESIS, WHOLE, AuditLine, Head, head_message, line_hash
from tapster.core.crypto import Signer
from tapster.tenancy.audit import service
from tapster.tenancy.audit.store import Selection, details, heads, lines
from tests.tenancy.audit.conftest import Ledger

COUNT = 12
OTHER = {"number": 77, "at": 5, "status": 299, "count": 9}


@pytest.fixture
def full(ledger: Ledger) -> Ledger:
    """Twelve lines of two tenants, with a head at the end."""
    for at in range(COUNT):
        ledger.grow(1, "default" if at % 3 else "berlin", first=at)
    ledger.keep_head()
    assert ledger.faults() == []
    return ledger


def test_a_whole_record_has_no_faults(full: Ledger) -> None:
    verdict = full.verdict()
    assert (verdict.lines, verdict.last, verdict.heads) == (COUNT, COUNT, 1)
    assert verdict.destroyed == 0
    of_tenant = full.verdict("berlin")
    assert (of_tenant.ok, of_tenant.lines) == (True, 4)
    assert full.verdict("nobody").lines == 0


@pytest.mark.parametrize("column", sorted({column.name for column in lines.c} - {"number"}))
def test_a_changed_column_of_a_line_is_found(full: Ledger, column: str) -> None:
    value = OTHER.get(column, "cd" * 32 if column in {"hash", "previous", "details"} else "x")
    if column == "own_previous":
        value = "cd" * 32
    assert full.tamper(f"update audit_lines set {column} = :value where number = 5", value=value)
    assert 5 in {fault.number for fault in full.faults()}


@pytest.mark.parametrize(
    ("column", "value"), [("salt", "ab" * 16), ("body", "[]"), ("tenant", "x")]
)
def test_changed_details_are_found(full: Ledger, column: str, value: str) -> None:
    assert {column.name for column in details.c} == {"number", "tenant", "salt", "body"}
    assert full.tamper(f"update audit_details set {column} = :v where number = 7", v=value)
    assert [(f.number, f.problem) for f in full.faults()] == [(7, "its details were changed")]


def test_details_that_say_something_else_are_found(full: Ledger) -> None:
    assert full.tamper("update audit_details set body = replace(body, 'n6', 'n9')") == COUNT
    assert [fault.number for fault in full.faults()] == [7]


def test_missing_details_are_found_unless_their_tenant_was_erased(full: Ledger) -> None:
    full.tamper("delete from audit_details where number in (4, 7)")
    assert [fault.number for fault in full.faults()] == [4]
    with full.db.write() as tx:
        assert service.erase(tx, "berlin") == 2
    assert full.faults() == []
    assert full.verdict().destroyed == 4
    full.tamper("delete from audit_details where number = 13")
    assert [fault.number for fault in full.faults()] == [13]


@pytest.mark.parametrize("number", [1, 6, COUNT])
def test_a_removed_line_is_found(full: Ledger, number: int) -> None:
    assert full.tamper("delete from audit_lines where number = :n", n=number) == 1
    found = full.faults()
    assert found[0].number == number
    assert "missing" in found[0].problem
    assert all(fault.number >= number for fault in found)


def test_a_gap_names_its_lines(full: Ledger) -> None:
    full.tamper("delete from audit_lines where number between 4 and 9")
    assert (full.faults()[0].number, full.faults()[0].problem) == (4, "lines 4 to 9 are missing")


def test_swapped_lines_are_found(full: Ledger) -> None:
    for old, new in ((4, 99), (5, 4), (99, 5)):
        for table in ("audit_lines", "audit_details"):
            full.tamper(f"update {table} set number = :new where number = :old", new=new, old=old)
    assert {4, 5} <= {fault.number for fault in full.faults()}


def test_a_line_put_in_is_found(full: Ledger) -> None:
    """With a number that fits no more, or in the place of another."""
    copied = ", ".join(c.name for c in lines.c if c.name != "number")
    full.tamper(f"insert into audit_lines (number, {copied}) select 13, {copied} from audit_lines"
                " where number = 3")  # fmt: skip
    assert [fault.number for fault in full.faults()] == [13]
    full.tamper("update audit_heads set number = 13")
    assert {fault.number for fault in full.faults()} >= {13}


def forge(full: Ledger, first: int) -> None:
    """Change line `first` and hash everything from there on again, as the format says."""
    found = [line for page in service.lines(full.db, Selection(), COUNT) for line in page]
    before, own = found[first - 2].hash if first > 1 else GENESIS, {}
    for line in found[: first - 1]:
        own[line.tenant] = line.hash
    for line in found[first - 1 :]:
        forged = replace(line, previous=before, own_previous=own.get(line.tenant, GENESIS))
        if line.number == first:
            forged = replace(forged, who="somebody-else")
        forged = replace(forged, hash=line_hash(forged))
        before = own[line.tenant] = forged.hash
        _write(full, forged)
    full.tamper("update audit_heads set hash = :h", h=before)


def _write(full: Ledger, line: AuditLine) -> None:
    full.tamper(
        "update audit_lines set who = :who, previous = :p, own_previous = :o, hash = :h"
        " where number = :n",
        who=line.who, p=line.previous, o=line.own_previous, h=line.hash, n=line.number,
    )  # fmt: skip


@pytest.mark.parametrize("first", [1, 6, COUNT])
def test_a_chain_hashed_anew_is_found_by_the_head(full: Ledger, first: int) -> None:
    forge(full, first)
    found = full.faults()
    assert [fault.number for fault in found] == [COUNT]
    assert "vouches for another line" in found[0].problem


def test_a_tail_that_was_cut_off_is_found_by_the_head(full: Ledger) -> None:
    full.tamper("delete from audit_lines where number > 9")
    full.tamper("delete from audit_details where number > 9")
    full.tamper(
        "update audit_heads set number = 9, hash = (select hash from audit_lines where number = 9)"
    )
    found = full.faults()
    assert [fault.number for fault in found] == [10]
    assert found[0].problem.startswith("lines 10 to 12 were cut off: a head signed at ")
    full.grow(3, first=100)  # written on from there
    assert [fault.number for fault in full.faults()] == [12]


def test_a_cut_that_forgets_the_databases_own_head_shows_without_any_other(ledger: Ledger) -> None:
    ledger.grow(5)
    ledger.tamper("delete from audit_lines where number = 5")
    assert ledger.faults() != []
    ledger.grow(1, first=10)
    assert ledger.faults()[0].number == 5


@pytest.mark.parametrize(
    "statement",
    [
        "update audit_heads set number = 11",
        "update audit_heads set number = 13",
        "update audit_heads set hash = '00'",
        "update audit_heads set tenant = 'x'",
        "delete from audit_heads",
    ],
)
def test_a_changed_head_of_the_databases_own_is_found(full: Ledger, statement: str) -> None:
    assert full.tamper(statement) == 1
    assert full.faults() != []


def test_a_tenants_check_finds_what_is_wrong_with_its_own_lines(full: Ledger) -> None:
    full.tamper("delete from audit_lines where number = 4")
    assert full.faults("berlin") != []
    assert full.faults("default") == []
    full.tamper("update audit_lines set action = 'x' where number = 5")
    assert [fault.number for fault in full.faults("default")] == [5]


# -- heads


def heads_of(ledger: Ledger) -> list[dict[str, object]]:
    return [json.loads(line) for line in ledger.heads_file().read_text().splitlines()]


def write_heads(ledger: Ledger, found: list[dict[str, object]]) -> None:
    ledger.heads_file().write_text("".join(json.dumps(each) + "\n" for each in found))


@pytest.mark.parametrize("name", ["view", "number", "hash", "at", "key", "signature"])
def test_a_forged_head_is_found(full: Ledger, name: str) -> None:
    found = heads_of(full)
    values = {"number": 3, "at": 1.0, "view": "berlin"}
    found[0][name] = values.get(name, "ab" * (64 if name == "signature" else 32))
    write_heads(full, found)
    assert "forged" in full.faults()[-1].problem


def test_a_head_signed_with_another_key_is_found(full: Ledger, tmp_path: Path) -> None:
    forge(full, 6)
    line = service.listing(full.db, WHOLE, Selection(), 0, 1)[0]
    other = Signer.of(tmp_path / "mine.key")
    head = Head(WHOLE, line.number, line.hash, 1.0, other.public)
    head = replace(head, signature=other.sign(head_message(head)))
    write_heads(full, [vars(head)])
    assert [fault.problem for fault in full.faults()] == [
        "line 1 of audit/heads.jsonl is not signed with this key: it is forged"
    ]


def test_what_is_no_head_is_found_but_not_one_that_a_crash_cut_short(full: Ledger) -> None:
    path = full.heads_file()
    good = path.read_bytes()
    path.write_bytes(good + good[: len(good) // 2])
    assert full.faults() == []
    full.grow(1, first=50)
    full.keep_head()
    assert full.faults() == []
    assert [head["number"] for head in heads_of(full)] == [COUNT, COUNT + 1]
    path.write_bytes(b"nonsense\n" + path.read_bytes())
    assert "is not a head" in full.faults()[0].problem


def test_a_second_folder_tells_when_the_first_was_cut_too(
    full: Ledger, reopened: Callable[..., Ledger]
) -> None:
    both = reopened(second=True)
    both.grow(2, first=60)
    both.keep_head()
    assert both.heads_file(1).exists()
    both.heads_file(0).unlink()
    both.tamper("delete from audit_lines where number > :n", n=COUNT)
    both.tamper("delete from audit_details where number > :n", n=COUNT)
    both.tamper("update audit_heads set number = 12, hash = (select hash from audit_lines"
                " where number = 12)")  # fmt: skip
    assert [fault.number for fault in both.faults()] == [COUNT + 1]
    both.heads_file(1).unlink()
    assert both.faults() == [], "out of reach: the lines and every head of them are gone"


def test_a_backup_that_was_put_back_shows(full: Ledger, reopened: Callable[..., Ledger]) -> None:
    full.grow(3, first=70)
    full.keep_head()
    full.tamper("delete from audit_lines where number > 12")
    full.tamper("delete from audit_details where number > 12")
    full.tamper("update audit_heads set number = 12, hash = (select hash from audit_lines"
                " where number = 12)")  # fmt: skip
    again = reopened()
    again.record.begin()
    assert heads_of(again)[-1]["number"] == 13, "heads go on at once"
    again.grow(5, first=80)
    again.keep_head()
    found = again.faults()
    assert 15 in {fault.number for fault in found}
    assert "cut back and written on" in found[-1].problem
    newest = service.listing(again.db, WHOLE, Selection(action="audit.behind"), 0, 9)
    assert [line.after for line in newest] == [{"line": 12, "signed_head": 15}]
    assert {column.name for column in heads.c} == {"tenant", "number", "hash"}
