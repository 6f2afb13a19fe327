"""Versions, aliases, descriptions, lineage, deletion, trust."""

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, inspect

from tapster.contract.control import ModelVersion
from tapster.contract.errors import TapsterError
from tapster.contract.manifest import Lineage
from tapster.core.crypto import Signer
from tapster.core.db import metadata
from tapster.core.vault import Vault
from tapster.registry import packages, service, store, trust
from tapster.tenancy import service as tenancy
from tests.registry.conftest import TENANT, Installation

OWN = ("models", "model_versions", "model_aliases", "trusted_keys")


def unused(tx: Connection, tenant: str, version: ModelVersion) -> list[str]:
    return []


def unlent(tx: Connection, tenant: str, version: ModelVersion) -> bool:
    return False


def refusal(here: Installation, ref: str, tenant: str = TENANT) -> TapsterError:
    with pytest.raises(TapsterError) as caught:
        here.resolve(ref, tenant)
    return caught.value


def test_the_migration_makes_the_tables_that_the_store_reads(here: Installation) -> None:
    with here.parts.db.read() as tx:
        inspector = inspect(tx)
        for name in OWN:
            table = metadata.tables[name]
            found = {column["name"]: column for column in inspector.get_columns(name)}
            assert list(found) == [column.name for column in table.columns]
            for column in table.columns:
                assert str(found[column.name]["type"]) == column.type.compile(tx.dialect)
                assert found[column.name]["nullable"] == column.nullable
            keys = inspector.get_pk_constraint(name)["constrained_columns"]
            assert keys == [column.name for column in table.primary_key.columns]
            indexes = {(i["name"], tuple(i["column_names"])) for i in inspector.get_indexes(name)}
            assert indexes == {(i.name, tuple(c.name for c in i.columns)) for i in table.indexes}


def test_versions_count_from_one_and_bare_names_mean_the_newest(here: Installation) -> None:
    made = [here.add("a"), here.add("a"), here.add("b")]
    assert [(v.model, v.version) for v in made] == [("a", 1), ("a", 2), ("b", 1)]
    assert here.resolve("a").version == 2
    assert here.resolve("a@1").digest == made[0].digest
    with here.parts.db.read() as tx:
        assert [(v.model, v.version) for v in service.listing(tx, TENANT)] == [("a", 2), ("b", 1)]
        assert [v.version for v in service.versions(tx, TENANT, "a")] == [2, 1]


def test_a_version_says_what_the_manifest_says(here: Installation) -> None:
    made = here.add("m", metrics={"f1": {"value": 0.5}}, lineage=Lineage(algorithm="ridge"))
    assert made.metrics == {"f1": {"value": 0.5}}
    assert made.lineage["algorithm"] == "ridge"
    assert made.signature["columns"][1]["name"] == 'it\'s "big" 🍷'
    assert made.signature["classes"] == [0, 1]
    assert (made.task, made.runtime, made.job) == ("binary", "onnx", "job_1")
    assert made.signer == here.parts.signer.public
    assert made.bytes == sum(
        path.stat().st_size
        for path in here.parts.blobs.get(packages.key_of(TENANT, made.digest)).rglob("*")
        if path.is_file()
    )


def test_the_same_package_twice_is_one_version(here: Installation) -> None:
    first = here.add("m", created=5.0)
    assert here.add("m", created=5.0) == first
    assert here.add("other", created=5.0).version == 1
    assert here.add("m", created=6.0).version == 2


@pytest.mark.parametrize(
    ("ref", "code", "hint"),
    [
        ("wine-quality@3", "not_found", "its versions are: 2, 1"),
        ("wine-quality:champion", "not_found", "tapster models alias wine-quality champion"),
        ("wine-qualiti", "not_found", "did you mean wine-quality?"),
        ("zzz", "not_found", "tapster models list"),
        ("wine-quality@x", "invalid", "NAME@VERSION"),
        ("wine-quality@", "invalid", "NAME@VERSION"),
        ("wine-quality@0", "invalid", "NAME@VERSION"),
        ("wine-quality@²", "invalid", "NAME@VERSION"),
        ("wine-quality@" + "9" * 5000, "invalid", "NAME@VERSION"),
        ("wine-quality:", "invalid", "NAME:ALIAS"),
        ("wine-quality:1", "invalid", "NAME:ALIAS"),
        ("", "invalid", "NAME"),
        ("../../etc", "invalid", "NAME"),
        ("a b", "invalid", "NAME"),
        ("'; DROP TABLE models; --", "invalid", "NAME"),
    ],
)
def test_references_that_lead_nowhere(here: Installation, ref: str, code: str, hint: str) -> None:
    here.add("wine-quality")
    here.add("wine-quality")
    error = refusal(here, ref)
    assert error.code == code
    assert hint in error.hint
    assert len(error.message) < 400


def test_the_data_plane_hears_of_aliases(here: Installation) -> None:
    here.add("m")
    with here.parts.db.write() as tx:
        before = tenancy.revision(tx)
        service.set_alias(tx, TENANT, "m@1", "champion")
        assert tenancy.revision(tx) == before + 1
        service.unset_alias(tx, TENANT, "m", "champion")
        assert tenancy.revision(tx) == before + 2


def test_aliases_move_and_vanish(here: Installation) -> None:
    here.add("m")
    here.add("m")
    with here.parts.db.write() as tx:
        assert service.set_alias(tx, TENANT, "m@1", "champion").aliases == ["champion"]
        service.set_alias(tx, TENANT, "m@1", "old")
        assert service.set_alias(tx, TENANT, "m", "champion").version == 2
        assert service.aliases(tx, TENANT, "m") == {"champion": 2, "old": 1}
    assert here.resolve("m:champion").version == 2
    assert here.resolve("m:old").aliases == ["old"]
    assert "its aliases are: champion, old" in refusal(here, "m:nope").hint
    with here.parts.db.write() as tx:
        service.unset_alias(tx, TENANT, "m", "champion")
        with pytest.raises(TapsterError, match="no alias"):
            service.unset_alias(tx, TENANT, "m", "champion")
        service.unset_alias(tx, TENANT, "m", "old")
        with pytest.raises(TapsterError, match="no alias") as none:
            service.unset_alias(tx, TENANT, "m", "old")
        assert none.value.hint == "it has none"
        with pytest.raises(TapsterError, match="no model"):
            service.unset_alias(tx, TENANT, "n", "champion")


@pytest.mark.parametrize("alias", ["1", "", "a b", "x" * 101, "-a", "a:b", "a/b"])
def test_what_cannot_be_an_alias(here: Installation, alias: str) -> None:
    here.add("m")
    with here.parts.db.write() as tx, pytest.raises(TapsterError) as caught:
        service.set_alias(tx, TENANT, "m", alias)
    assert caught.value.code == "invalid"


def test_descriptions_and_tags(here: Installation) -> None:
    here.add("m")
    with here.parts.db.write() as tx:
        described = service.describe(tx, TENANT, "m", "<b>best</b>", {"team": "blue 'x'"})
        assert (described.description, described.tags) == ("<b>best</b>", {"team": "blue 'x'"})
        kept = service.describe(tx, TENANT, "m", description="now")
        assert (kept.description, kept.tags) == ("now", {"team": "blue 'x'"})
        assert service.describe(tx, TENANT, "m", tags={}).tags == {}
        for bad in ({"x" * 101: "1"}, {"a": "x" * 1001}, {str(n): "" for n in range(101)}):
            with pytest.raises(TapsterError):
                service.describe(tx, TENANT, "m", tags=bad)
        with pytest.raises(TapsterError):
            service.describe(tx, TENANT, "m", "x" * 10_001)


def test_lineage_leads_both_ways(here: Installation) -> None:
    data: dict[str, Any] = {"dataset": "wine", "dataset_version": 2, "dataset_digest": "d" * 64}
    first = here.add("a", lineage=Lineage(**data))
    here.add("b", lineage=Lineage(**data, parent=first.digest))
    here.add("c", lineage=Lineage(dataset="wine", dataset_version=1, dataset_digest="e" * 64))
    with here.parts.db.read() as tx:
        assert service.lineage(tx, TENANT, "a") == {
            "data": {"dataset": "wine", "version": 2, "digest": "d" * 64},
            "parents": [],
            "children": ["b@1"],
            "same_data": ["b@1"],
        }
        assert service.lineage(tx, TENANT, "b")["parents"] == ["a@1"]

        def touched(**query: str) -> list[str]:
            return [v.model for v in service.listing(tx, TENANT, **query)]

        assert touched(dataset="wine") == ["a", "b", "c"]
        assert touched(dataset="wine@2") == ["a", "b"]
        assert touched(dataset="wine@3") == touched(dataset="beer") == []
        assert touched(data_digest="e" * 64) == ["c"]
        with pytest.raises(TapsterError, match="NAME@VERSION of a dataset"):
            service.listing(tx, TENANT, "wine@x")


def test_deleting_frees_what_nothing_else_needs(here: Installation) -> None:
    one, two = here.add("m", created=5.0), here.add("m")
    here.add("twin", created=5.0)
    with here.parts.db.write() as tx:
        service.set_alias(tx, TENANT, "m@1", "old")
        assert service.delete(tx, TENANT, "m@1", unused, unlent) == []
        assert service.aliases(tx, TENANT, "m") == {}
        assert service.delete(tx, TENANT, "twin", unused, unlent) == [
            packages.key_of(TENANT, one.digest)
        ]
        assert service.delete(tx, TENANT, "m", unused, unlent) == [
            packages.key_of(TENANT, two.digest)
        ]
        assert service.listing(tx, TENANT) == []
        assert service.blob_keys(tx) == set()
        with pytest.raises(TapsterError, match="no model"):
            service.delete(tx, TENANT, "m", unused, unlent)


def test_a_number_is_never_given_twice(here: Installation) -> None:
    here.add("m")
    here.add("m")
    with here.parts.db.write() as tx:
        service.delete(tx, TENANT, "m@2", unused, unlent)
    assert here.add("m").version == 3
    with here.parts.db.write() as tx:
        service.delete(tx, TENANT, "m", unused, unlent)
    assert here.add("m").version == 4


def test_what_an_endpoint_serves_stays_whole(here: Installation) -> None:
    served, other = here.add("m"), here.add("m")

    def in_use(tx: Connection, tenant: str, version: ModelVersion) -> list[str]:
        return ["shop", "lab"] if version.version == served.version else []

    with here.parts.db.write() as tx:
        for ref in ("m@1", "m"):
            with pytest.raises(TapsterError) as caught:
                service.delete(tx, TENANT, ref, in_use, unlent)
            assert caught.value.code == "conflict"
            assert "m@1 is served by endpoint shop, lab" in caught.value.message
            assert "tapster endpoints delete shop" in caught.value.hint
        assert len(service.versions(tx, TENANT, "m")) == 2
        assert service.delete(tx, TENANT, "m@2", in_use, unlent) == [
            packages.key_of(TENANT, other.digest)
        ]


def test_tenants_see_nothing_of_each_other(here: Installation) -> None:
    mine, theirs = here.add("m", created=5.0), here.add("m", tenant="other", created=5.0)
    assert mine.digest == theirs.digest
    assert refusal(here, "m@2").code == "not_found"
    assert refusal(here, "m", "third").code == "not_found"
    with here.parts.db.write() as tx:
        service.set_alias(tx, "other", "m", "champion")
        assert service.aliases(tx, TENANT, "m") == {}
        keys = {packages.key_of(TENANT, mine.digest), packages.key_of("other", mine.digest)}
        assert service.blob_keys(tx) == keys
        assert service.delete(tx, "other", "m", unused, unlent) == [
            packages.key_of("other", mine.digest)
        ]
    assert here.resolve("m") == mine


@pytest.mark.parametrize("name", ["", "a b", "../x", "x" * 101, "@", "a@1", "é"])
def test_what_cannot_be_a_models_name(here: Installation, name: str) -> None:
    with pytest.raises(TapsterError) as caught:
        here.add(name)
    assert caught.value.code == "invalid"
    assert caught.value.field == "name"


KEY = Signer(b"3" * 32).public


def test_trust(here: Installation) -> None:
    with here.parts.db.write() as tx:
        added = trust.trust(tx, TENANT, "berlin", f"  {KEY.upper()}\n")
        assert added["public_key"] == KEY
        assert trust.trust(tx, TENANT, "berlin", KEY) == added
        assert trust.keys(tx, TENANT) == [added]
        assert service.trusted(tx, TENANT) == {KEY}
        assert trust.keys(tx, "other") == []
        with pytest.raises(TapsterError) as caught:
            trust.trust(tx, TENANT, "berlin", Signer(b"4" * 32).public)
        assert caught.value.code == "conflict"
        trust.distrust(tx, TENANT, "berlin")
        assert service.trusted(tx, TENANT) == set()
        with pytest.raises(TapsterError, match="no trusted key"):
            trust.distrust(tx, TENANT, "berlin")


@pytest.mark.parametrize("key", ["", "abc", "g" * 64, "a" * 63, "a" * 65, KEY + " x"])
def test_what_is_no_key(here: Installation, key: str) -> None:
    with here.parts.db.write() as tx, pytest.raises(TapsterError) as caught:
        trust.trust(tx, TENANT, "berlin", key)
    assert (caught.value.code, caught.value.field) == ("invalid", "public_key")


def test_a_signer_of_something_registered_stays_good_for_serving(here: Installation) -> None:
    here.add("m")
    with here.parts.db.read() as tx:
        assert service.trusted(tx, TENANT) == {here.parts.signer.public}


def test_two_registrations_at_once_get_two_numbers(here: Installation) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def add(number: int) -> int:
        with here.parts.db.write() as tx:
            values: dict[str, Any] = {
                "digest": str(number), "task": "other", "runtime": "onnx", "bytes": 1,
                "metrics": {}, "lineage": {}, "signature": {}, "unvetted": [], "signer": "",
                "dataset": "", "dataset_version": 0, "dataset_digest": "", "job": "",
            }  # fmt: skip
            return store.add(tx, TENANT, "m", **values)

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(add, range(12))) == list(range(1, 13))


def test_the_verbs_on_postgresql(tmp_path: Path, postgres_url: str) -> None:
    """The same SQL on the database that a team grows into, in a tenant of its own."""
    here = Installation(tmp_path / "pg", database_url=postgres_url)
    try:
        one = here.add("m", tenant="pg", created=5.0, lineage=Lineage(dataset="d"))
        two = here.add("m", tenant="pg", lineage=Lineage(parent=one.digest))
        assert here.add("m", tenant="pg", created=5.0, lineage=Lineage(dataset="d")) == one
        with here.parts.db.write() as tx:
            assert service.set_alias(tx, "pg", "m@1", "champion").aliases == ["champion"]
            assert service.describe(tx, "pg", "m@1", "é", {"a": "b"}).tags == {"a": "b"}
            assert service.lineage(tx, "pg", "m@1")["children"] == ["m@2"]
            assert [v.version for v in service.listing(tx, "pg")] == [2]
            assert [v.version for v in service.listing(tx, "pg", "d")] == [1]
            assert trust.trust(tx, "pg", "berlin", KEY)["name"] == "berlin"
            freed = service.delete(tx, "pg", "m", unused, unlent)
            assert freed == sorted(packages.key_of("pg", v.digest) for v in (one, two))
            assert service.aliases(tx, "pg", "m") == {}
    finally:
        here.parts.db.close()


def test_an_export_that_is_read_slowly_keeps_what_was_decrypted_for_it(tmp_path: Path) -> None:
    vault = Vault(tmp_path / "vault")
    vault.open()
    with vault.making("acme/packages/d") as folder:
        for name in ("manifest.json", "manifest.sig", "model.onnx"):
            (folder / name).write_bytes(b"bytes")
    found = vault.get("acme/packages/d")
    assert found is not None
    size, reading = packages.export_size(found), packages.export(found)
    first = next(reading)
    vault.tidy(age=-1.0)
    assert len(first) + sum(map(len, reading)) == size
    vault.tidy(age=-1.0)
    assert vault.get("acme/packages/d") is None
