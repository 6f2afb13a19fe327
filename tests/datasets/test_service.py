"""Versions by name, what deletion frees, and what a retried job does not do twice."""

from typing import Any

import pytest

from tapster.contract.errors import TapsterError
from tapster.core.blobs import folder_size
from tapster.datasets import service
from tapster.datasets.work import HANDLERS
from tests.datasets.conftest import TENANT, Desk


def _names(desk: Desk) -> list[str]:
    with desk.parts.db.read() as tx:
        return [f"{v.name}@{v.version}" for v in service.listing(tx, TENANT)]


@pytest.fixture
def stocked(desk: Desk, put: Any) -> Desk:
    desk.add("a", put("1.csv", "x\n1\n2\n3\n"))
    desk.add("a", put("2.csv", "x\n4\n5\n6\n"))
    desk.add("b", put("1.csv", "x\n1\n2\n3\n"))
    desk.split("a@1", fractions=[0.4, 0.3, 0.3])
    return desk


def test_names_and_versions(stocked: Desk) -> None:
    assert _names(stocked) == ["a@2", "b@1"]
    with stocked.parts.db.read() as tx:
        assert [v.version for v in service.versions(tx, TENANT, "a")] == [2, 1]
        assert service.resolve(tx, TENANT, "a").version == 2
        assert service.resolve(tx, TENANT, "a@1").rows == 3
        for ref, says in {
            "a@3": "no version 3",
            "aa": "no dataset 'aa'",
            "a@x": "not NAME or NAME@VERSION",
            "a@": "not NAME or NAME@VERSION",
            "a@²": "not NAME or NAME@VERSION",
        }.items():
            with pytest.raises(TapsterError, match=says):
                service.resolve(tx, TENANT, ref)


def test_another_tenant_sees_nothing(stocked: Desk) -> None:
    with stocked.parts.db.read() as tx:
        assert service.listing(tx, "stranger") == []
        with pytest.raises(TapsterError, match="no dataset"):
            service.resolve(tx, "stranger", "a")
    with pytest.raises(TapsterError, match="no dataset"):
        service.delete(stocked.parts, "stranger", "a")


def test_deleting_frees_what_nobody_else_uses_and_says_how_much(stocked: Desk) -> None:
    parts = stocked.parts
    root = parts.settings.home / "blobs"
    with parts.db.read() as tx:
        _, split = service.find_split(tx, TENANT, "a@1", "default")
    of_split = folder_size(parts.blobs.get(split))
    # b shares the content of a@1: only the split's file goes.
    assert service.delete(parts, TENANT, "a@1") == of_split
    before = folder_size(root)
    freed = service.delete(parts, TENANT, "a")
    assert freed > 0
    assert before - folder_size(root) == freed
    assert _names(stocked) == ["b@1"]
    assert service.delete(parts, TENANT, "b@1") == folder_size(root) + before - freed
    assert list(parts.blobs.keys()) == []
    with pytest.raises(TapsterError, match="no dataset 'a'"):
        service.delete(parts, TENANT, "a")


def test_a_number_is_never_used_again(stocked: Desk, put: Any) -> None:
    service.delete(stocked.parts, TENANT, "a")
    assert stocked.add("a", put("3.csv", "x\n7\n"))["version"] == 3


def test_lineage_remembers_a_deleted_parent(stocked: Desk) -> None:
    stocked.clean("b@1", {"op": "drop_duplicates"})
    service.delete(stocked.parts, TENANT, "b@1")
    with stocked.parts.db.read() as tx:
        (parent,) = service.lineage(tx, TENANT, "b@2")["parents"]
    assert (parent["dataset"], parent["version"], parent["deleted"]) == ("b", 1, True)


def test_a_job_that_is_applied_twice_registers_once(desk: Desk, put: Any) -> None:
    job = desk.submit("a", put("1.csv", "x\n1\n"))
    first, again = desk.do(job), desk.do(job)
    assert (first["version"], again["version"]) == (1, 1)
    assert _names(desk) == ["a@1"]


def test_every_blob_that_a_row_names_is_known(stocked: Desk) -> None:
    with stocked.parts.db.read() as tx:
        assert service.blob_keys(tx) == set(stocked.parts.blobs.keys())
    assert set(HANDLERS) == {"dataset.import", "dataset.clean", "dataset.split"}
