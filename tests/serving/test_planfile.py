"""The saved plan: what its writer left is read, what anybody else left is not."""

import multiprocessing
import os
import time
from pathlib import Path

import msgspec
import pytest

from tapster.contract.errors import TapsterError
from tapster.contract.plan import PlanDelta, ServingPlan
from tapster.contract.snapshots import pack
from tapster.serving import planfile
from tapster.serving.planfile import Book, Pages
from tests.serving.conftest import grant

KEY = b"key"


def delta(number: int, **more: object) -> bytes:
    """The delta that leads to a plan from the one before."""
    made = PlanDelta(number - 1, f"m{number - 1}", number, f"m{number}", **more)  # type: ignore[arg-type]
    return msgspec.json.encode(made)


def begun(folder: Path, deltas: int = 0) -> Book:
    book = Book(folder, KEY)
    book.replace(pack(ServingPlan(1, mark="m1")))
    for number in range(2, 2 + deltas):
        book.append(delta(number, gone_keys=(f"key_{number}",)))
    return book


def read(folder: Path) -> tuple[list[int], bool]:
    """The numbers of the deltas that count, and whether something after them does not."""
    pages = Pages(folder, KEY)
    numbers = [each.number for each in pages.more()]
    return numbers, pages.refused


def log(folder: Path) -> Path:
    return next(folder.glob(planfile.LOGS))


def test_deltas_are_read_as_they_come(tmp_path: Path) -> None:
    book = begun(tmp_path)
    pages = Pages(tmp_path, KEY)
    assert (pages.number, pages.mark, pages.grown()) == (1, "m1", False)
    for number in range(2, 50):
        book.append(delta(number, keys=(grant(str(number)),)))
        assert pages.grown()
        assert [each.keys for each in pages.more()] == [(grant(str(number)),)]
        assert not pages.grown()
    assert read(tmp_path) == (list(range(2, 50)), False)
    assert log(tmp_path).stat().st_mode & 0o777 == 0o600
    assert (tmp_path / planfile.NAME).stat().st_mode & 0o777 == 0o600


def test_another_writer_goes_on(tmp_path: Path) -> None:
    begun(tmp_path, 3).close()
    book = Book(tmp_path, KEY)
    assert (book.number, book.mark) == (4, "m4")
    book.append(delta(5))
    assert read(tmp_path) == ([2, 3, 4, 5], False)


def test_a_new_snapshot_ends_the_log(tmp_path: Path) -> None:
    book = begun(tmp_path, 3)
    before = log(tmp_path)
    book.replace(pack(ServingPlan(9, mark="m9")))
    assert not before.exists()
    assert read(tmp_path) == ([], False)
    book.append(delta(10))
    assert read(tmp_path) == ([10], False)


def test_a_delta_that_does_not_go_on_is_refused(tmp_path: Path) -> None:
    book = begun(tmp_path, 1)
    other = PlanDelta(2, "other", 3, "m3")
    for bad in (delta(2), delta(4), msgspec.json.encode(other), b"{}", b"\n", b"", b"\xff"):
        with pytest.raises(ValueError):  # noqa: PT011 - any of them
            book.append(bad)
    with pytest.raises(ValueError, match="no plan"):
        book.replace(b"{}")
    assert (book.number, read(tmp_path)) == (2, ([2], False))


def test_a_reader_in_the_middle_of_what_a_killed_writer_left_goes_on(tmp_path: Path) -> None:
    begun(tmp_path, 1).close()
    with log(tmp_path).open("ab") as file:
        file.write(b"0" * 40)
    pages = Pages(tmp_path, KEY)
    coming = pages.more()
    assert next(coming).number == 2
    Book(tmp_path, KEY).append(delta(3))
    assert [each.number for each in (*coming, *pages.more())] == [3]
    assert not pages.refused


@pytest.mark.parametrize("end", ["line", "half", "byte"])
def test_a_torn_end_is_as_if_it_were_not_there(tmp_path: Path, end: str) -> None:
    begun(tmp_path, 3).close()
    path = log(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    keep = {"line": 0, "half": len(lines[2]) // 2, "byte": len(lines[2]) - 1}[end]
    path.write_bytes(b"".join(lines[:2]) + lines[2][:keep])
    assert read(tmp_path) == ([2, 3], False)
    book = Book(tmp_path, KEY)
    assert book.number == 3
    book.append(delta(4))
    assert read(tmp_path) == ([2, 3, 4], False)


@pytest.mark.parametrize(
    ("order", "good"),
    [
        ([1, 0, 2, 3], []),  # moved
        ([0, 2, 3], [2]),  # left out in the middle
        ([0, 1, 1, 2, 3], [2, 3]),  # twice
        ([1, 2, 3], []),  # left out at the beginning
        ([0, 1, 3, 2], [2, 3]),
    ],
)
def test_lines_count_in_their_order_only(tmp_path: Path, order: list[int], good: list[int]) -> None:
    begun(tmp_path, 4).close()
    path = log(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[each] for each in order))
    assert read(tmp_path) == (good, True)
    # Whoever writes next asks for the whole plan.
    assert Book(tmp_path, KEY).number == -1


def test_no_bit_of_it_can_be_another(tmp_path: Path) -> None:
    begun(tmp_path, 3).close()
    path = log(tmp_path)
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for at in range(first, len(whole) - 1, 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        numbers, _ = read(tmp_path)
        assert numbers[:1] == [2]
        assert numbers in ([2], [2, 3])
    plan = (tmp_path / planfile.NAME).read_bytes()
    for at in range(0, len(plan), 5):
        (tmp_path / planfile.NAME).write_bytes(plan[:at] + bytes([plan[at] ^ 1]) + plan[at + 1 :])
        with pytest.raises(ValueError):  # noqa: PT011 - any of them
            Pages(tmp_path, KEY)


def test_a_log_of_another_plan_or_key_does_not_count(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for folder in (ours, theirs):
        folder.mkdir()
    begun(ours, 2).close()
    book = Book(theirs, KEY)
    book.replace(pack(ServingPlan(1, mark="m1", signers=("other",))))
    book.append(delta(2, gone_keys=("key_other",)))
    log(ours).write_bytes(log(theirs).read_bytes())
    assert read(ours) == ([], True)
    forged = Book(theirs, b"another key")
    assert forged.number == -1
    forged.replace(pack(ServingPlan(1, mark="m1")))
    with pytest.raises(ValueError, match="not sealed"):
        Pages(theirs, KEY)
    with pytest.raises(ValueError, match="not sealed"):
        Pages(theirs, b"")


def test_what_others_touch_is_noticed(tmp_path: Path) -> None:
    book = begun(tmp_path, 2)
    assert book.intact()
    with log(tmp_path).open("ab") as file:
        file.write(b"x\n")
    assert not book.intact()
    book = begun(tmp_path, 2)
    (tmp_path / planfile.NAME).unlink()
    assert not book.intact()


def test_a_long_log_asks_for_a_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planfile, "LONG", 1000)
    book = begun(tmp_path, 1)
    assert not book.long
    for number in range(3, 12):
        book.append(delta(number))
    assert book.long


def test_a_full_disk_leaves_what_there_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = begun(tmp_path, 1)
    write = os.write

    def full(descriptor: int, data: memoryview) -> int:
        if len(data) < 60:
            raise OSError(28, "no space left")
        return write(descriptor, data[:50])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(TapsterError, match="disk is full"):
        book.append(delta(3))
    monkeypatch.setattr(os, "write", write)
    assert (book.number, read(tmp_path)) == (2, ([2], False))
    book.append(delta(3))
    assert read(tmp_path) == ([2, 3], False)


def test_a_line_that_was_read_before_it_was_safe_is_not_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book, seen = begun(tmp_path, 1), []
    pages = Pages(tmp_path, KEY)

    def failing(descriptor: int) -> None:
        seen.extend([each.number for each in pages.more()])
        raise OSError(28, "no space left")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", failing)
        with pytest.raises(TapsterError, match="disk is full"):
            book.append(delta(3))
    if not book.intact():  # as the agent does before it asks again
        book = Book(tmp_path, KEY)
    later = PlanDelta(book.number, book.mark, 4, "m4", gone_keys=("revoked",))
    book.append(msgspec.json.encode(later))
    seen += [each.number for each in pages.more()]
    assert (seen, pages.refused) == ([2, 3, 4], False)


def _write_on(folder: Path) -> None:
    book = Book(folder, KEY)
    while True:
        book.append(delta(book.number + 1, gone_keys=tuple(f"key_{at}" for at in range(200))))


def test_killed_writers_lose_nothing_that_was_read(tmp_path: Path) -> None:
    """Writers are killed at any moment; what a reader has read is what the next goes on from."""
    begun(tmp_path).close()
    pages, seen = Pages(tmp_path, KEY), 1
    context = multiprocessing.get_context("spawn")
    for _ in range(2):
        writer = context.Process(target=_write_on, args=(tmp_path,))
        writer.start()
        until, more = time.monotonic() + 20, seen + 5
        while seen < more:
            assert time.monotonic() < until
            for each in pages.more():
                assert each.number == seen + 1
                seen = each.number
        writer.kill()
        writer.join()
    assert not pages.refused
    book = Book(tmp_path, KEY)
    assert book.number >= seen
