"""Models of one tenant behind another's endpoints: names, plans, withdrawals, what may not be."""

from pathlib import Path

import msgspec
import pytest
from sqlalchemy import Connection

from tapster.app import open_parts
from tapster.contract.control import DEFAULT_TENANT, Endpoint, Principal
from tapster.contract.errors import TapsterError
from tapster.contract.plan import EndpointPlan, PlanDelta
from tapster.core.settings import load
from tapster.deployments import deltas, service
from tapster.deployments.judgement import Rules
from tapster.deployments.sharing import service as sharing
from tapster.registry import service as registry
from tapster.registry import sharing as models
from tapster.tenancy import revisions
from tapster.tenancy import service as tenancy
from tapster.tenancy.limits import service as limits
from tapster.tenancy.limits.service import Wanted
from tapster.tenancy.shares import service as shares
from tapster.tenancy.tenants import service as tenants
from tests.deployments.conftest import NUMBERS, DataPlane, digest, register, regression, weights


@pytest.fixture(autouse=True)
def others(tx: Connection) -> None:
    """The tenant default has the model m; there are tenants acme and zeta."""
    for name in ("acme", "zeta"):
        tenants.add(tx, name)


def live(tx: Connection, plane: DataPlane, ref: str, percent: float = 100.0) -> Endpoint:
    """Deploy at acme's endpoint e and switch."""
    service.deploy(tx, "acme", "e", ref, percent)
    plane.settle(2)
    return service.show(tx, "acme", "e")


def planned(tx: Connection) -> EndpointPlan:
    [found] = service.plan(tx, "key").endpoints
    return found


def refusal(change: object) -> tuple[str, str]:
    assert callable(change)
    with pytest.raises(TapsterError) as refused:
        change()
    return refused.value.code, refused.value.message


def seen(tx: Connection, tenant: str) -> list[tuple[str, str]]:
    return [(version.model, version.owner) for version in models.listing(tx, tenant)]


def test_who_it_is_shared_with_sees_what_it_takes_and_gives_and_nothing_of_its_making(
    tx: Connection,
) -> None:
    registry.set_alias(tx, "default", "m@2", "best")
    registry.describe(tx, "default", "m@2", "for loans", {"cost-centre": "12"})
    assert models.share(tx, "default", "m", ["acme"]).shared == ["acme"]
    assert (seen(tx, "acme"), seen(tx, "zeta")) == ([("m", "default")], [])
    own = registry.resolve(tx, "default", "m@2")
    for ref in ("m@2", "m:best", "default--m@2", "default--m:best"):
        found = models.find(tx, "acme", ref)
        assert found.model == ref.partition("@")[0].partition(":")[0]
        assert (found.version, found.owner, found.digest) == (2, "default", own.digest)
        assert (found.signature, found.metrics) == (own.signature, own.metrics)
        assert (found.aliases, found.description) == (["best"], "for loans")
        assert (found.lineage, found.tags, found.job, found.shared) == ({}, {}, "", [])
    assert [version.version for version in models.versions(tx, "acme", "m")] == [3, 2, 1]
    assert models.find(tx, "default", "default--m").shared == ["acme"]
    assert models.listing(tx, "default")[0].shared == ["acme"]
    missing = refusal(lambda: models.find(tx, "acme", "m@9"))
    assert missing == ("not_found", "model m has no version 9")
    assert refusal(lambda: models.find(tx, "acme", "m:worst"))[0] == "not_found"


def test_who_it_is_not_shared_with_is_told_what_everybody_is_told_of_nothing(
    tx: Connection,
) -> None:
    models.share(tx, "default", "m", ["acme"])
    for form in ("{}", "{}@1", "{}:best"):
        for ask in (
            lambda ref: models.find(tx, "zeta", ref),
            lambda ref: models.versions(tx, "zeta", ref),
            lambda ref: service.deploy(tx, "zeta", "e", ref),
            lambda ref: registry.resolve(tx, "zeta", ref),
            lambda ref: models.share(tx, "zeta", ref.partition("@")[0].partition(":")[0], ["acme"]),
        ):
            nowhere = refusal(lambda ask=ask, form=form: ask(form.format("q")))
            for name in ("m", "default--m", "nobody--m"):
                code, message = refusal(
                    lambda ask=ask, form=form, name=name: ask(form.format(name))
                )
                assert (code, message.replace(repr(name), "'q'")) == nowhere


def test_its_owner_alone_may_do_more_than_look_and_deploy(tx: Connection) -> None:
    models.share(tx, "default", "m", ["acme"])
    for change in (
        lambda ref: registry.describe(tx, "acme", ref, "mine"),
        lambda ref: registry.set_alias(tx, "acme", ref, "best"),
        lambda ref: registry.unset_alias(tx, "acme", ref, "best"),
        lambda ref: registry.lineage(tx, "acme", ref),
        lambda ref: registry.delete(tx, "acme", ref, service.in_use, service.lent),
        lambda ref: models.share(tx, "acme", ref, ["zeta"]),
        lambda ref: models.withdraw(tx, "acme", ref, []),
    ):
        for ref in ("m", "default--m"):
            code, message = refusal(lambda change=change, ref=ref: change(ref))
            assert (code, message) == (
                "forbidden",
                f"the model {ref} is another tenant's, which shares it",
            )


def test_ones_own_comes_first_and_a_clash_is_called_by_its_owner(tx: Connection) -> None:
    models.share(tx, "default", "m", ["*"])
    register(tx, "m@1", regression(*NUMBERS), "zeta")
    models.share(tx, "zeta", "m", ["acme"])
    assert seen(tx, "acme") == [("default--m", "default"), ("zeta--m", "zeta")]
    with pytest.raises(TapsterError) as refused:
        models.find(tx, "acme", "m")
    assert "default--m or zeta--m" in refused.value.hint
    assert seen(tx, "zeta") == [("m", ""), ("default--m", "default")]
    assert models.find(tx, "zeta", "m").owner == ""
    assert models.find(tx, "zeta", "default--m").owner == "default"
    register(tx, "default--m@1", regression(*NUMBERS), "zeta")
    assert seen(tx, "zeta") == [("default--m", ""), ("m", "")], "an own one hides it"
    assert models.find(tx, "zeta", "default--m").owner == ""


def test_a_name_that_others_could_not_say_is_not_shared(tx: Connection) -> None:
    owner = "z" * 30
    for name, words in (("a--m", "with -- in its name"), ("x" * 100, "so long a name")):
        register(tx, f"{name}@1", regression(*NUMBERS), owner)
        with pytest.raises(TapsterError, match=words):
            models.share(tx, owner, name, ["acme"])
    for ref in ("m@1", "m:best"):
        with pytest.raises(TapsterError, match="with all of its versions"):
            models.share(tx, "default", ref, ["acme"])


def test_it_is_served_by_an_endpoint_of_the_one_who_borrows(
    tx: Connection, plane: DataPlane
) -> None:
    registry.set_alias(tx, "default", "m@2", "best")
    models.share(tx, "default", "m", ["acme"])
    assert weights(live(tx, plane, "m:best").serving) == {"default--m@2": 100}
    assert service.listing(tx, "default") == []
    plan = service.plan(tx, "key")
    [package] = plan.packages
    assert package.key == f"default/packages/{digest('m@2')}"
    assert "0" * 64 in plan.signers
    endpoint = planned(tx)
    assert (endpoint.tenant, endpoint.labels) == ("acme", {"best": 2})
    assert [each.model for each in endpoint.variants] == ["default--m"]
    registry.set_alias(tx, "default", "m@3", "best")
    plane.settle(3)
    assert weights(service.show(tx, "acme", "e").serving) == {"default--m@3": 100}
    assert weights(live(tx, plane, "m@1", 20).serving) == {"default--m@3": 80, "default--m@1": 20}
    service.shadow(tx, "acme", "e", "default--m@2")
    plane.settle(2)
    assert weights(service.show(tx, "acme", "e").serving)["default--m@2"] is None
    service.set_weights(tx, "acme", "e", {"default--m@1": 50, "m@3": 50})
    plane.settle(2)
    service.roll_out(tx, "acme", "e", "m@2", steps=(10.0, 100.0), rules=Rules())
    plane.settle(2)
    rollout = service.show(tx, "acme", "e").rollout
    assert rollout is not None
    assert (rollout["model"], rollout["weight"]) == ("default--m", 10)
    assert [each.model for each in planned(tx).variants if each.canary] == ["default--m"]


def test_it_is_a_member_beside_ones_own_and_no_version_of_ones_own(
    tx: Connection, plane: DataPlane
) -> None:
    models.share(tx, "default", "m", ["acme"])
    register(tx, "m@1", regression(*NUMBERS), "acme")
    live(tx, plane, "default--m@1")
    with pytest.raises(TapsterError, match="m@1 is not a version of default--m"):
        service.deploy(tx, "acme", "e", "m@1", 50)
    service.deploy_ensemble(tx, "acme", "e", {"default--m@1": 0.5, "m@1": 0.5})
    plane.settle(2)
    shown = service.show(tx, "acme", "e")
    assert weights(shown.serving) == {"default--m@1": 0.5, "m@1": 0.5}
    assert [line.get("model") for line in shown.traffic] == [None, "default--m", "m"]
    assert {each.model for each in planned(tx).variants} == {"default--m", "m"}
    models.withdraw(tx, "default", "m", [])
    assert (planned(tx).kind, planned(tx).variants) == ("split", ()), "nothing answers in part"


def test_what_is_withdrawn_answers_nobody_until_it_is_shared_again(
    tx: Connection, plane: DataPlane
) -> None:
    models.share(tx, "default", "m", ["acme", "zeta"])
    live(tx, plane, "m@1")
    for verb in (models.withdraw, models.share):
        after = tenancy.revision(tx)
        mark = revisions.mark(tx, after)
        verb(tx, "default", "m", ["acme"])
        found = deltas.delta(tx, "key", after, mark)
        assert found is not None
        delta = msgspec.json.decode(found, type=PlanDelta)
        assert list(delta.endpoints) == [planned(tx)]
        gone = verb is models.withdraw
        shown, endpoint = service.show(tx, "acme", "e"), planned(tx)
        assert (shown.status, endpoint.variants == (), endpoint.labels) == (
            "failed" if gone else "live",
            gone,
            {},
        )
        assert [need.packages for need in delta.needs] == [() if gone else (digest("m@1"),)]
        assert bool(service.plan(tx, "key").packages) is not gone
        assert weights(shown.serving) == {"default--m@1": 100}
        if gone:
            assert shown.error is not None
            assert shown.error["message"] == endpoint.halted
            assert "default--m@1 is not shared with you any longer" in endpoint.halted
            assert service.listing(tx, "acme")[0].status == "failed"
            assert refusal(lambda: service.deploy(tx, "acme", "e", "m@1"))[0] == "not_found"
        else:
            assert (shown.error, endpoint.halted) == (None, "")


def test_what_is_not_ready_when_it_is_withdrawn_is_refused(
    tx: Connection, plane: DataPlane
) -> None:
    models.share(tx, "default", "m", ["acme"])
    live(tx, plane, "m@1")
    service.deploy(tx, "acme", "e", "m@2")
    models.withdraw(tx, "default", "m", [])
    plane.settle(2)
    models.share(tx, "default", "m", ["acme"])
    shown = service.show(tx, "acme", "e")
    assert (shown.status, weights(shown.serving)) == ("live", {"default--m@1": 100})
    assert shown.error is not None
    assert "its owner shares it no longer" in shown.error["message"]
    models.withdraw(tx, "default", "m", [])
    register(tx, "own@1", regression(*NUMBERS), "acme")
    assert live(tx, plane, "own@1").error is None
    assert refusal(lambda: service.rollback(tx, "acme", "e"))[0] == "not_found"


def test_a_version_that_others_serve_is_not_deleted_until_it_is_withdrawn(
    tx: Connection, plane: DataPlane
) -> None:
    models.share(tx, "default", "m", ["acme"])
    live(tx, plane, "m@1")

    def delete(ref: str) -> None:
        registry.delete(tx, "default", ref, service.in_use, service.lent)

    with pytest.raises(TapsterError) as refused:
        delete("m")
    told = str(refused.value.as_dict())
    assert "served by another tenant's endpoint" in told
    assert "acme" not in told
    delete("m@2")
    models.withdraw(tx, "default", "m", ["acme"])
    delete("m@1")
    models.share(tx, "default", "m", ["acme"])
    assert service.show(tx, "acme", "e").status == "failed", "that version is gone for good"
    delete("m")
    assert shares.consumers(tx, shares.MODEL, "default", "m") == [], "a new one is nobody else's"


def test_who_borrows_may_not_pass_on(tx: Connection, plane: DataPlane) -> None:
    models.share(tx, "default", "m", ["acme"])
    register(tx, "own@1", regression(*NUMBERS), "acme")
    live(tx, plane, "m@1")
    conflict = ("conflict", "endpoint e cannot be shared and serve default--m@1")
    code, message = refusal(lambda: sharing.share(tx, "acme", "e", ["zeta"]))
    assert (code, message.partition(", which")[0]) == conflict
    live(tx, plane, "own@1")
    sharing.share(tx, "acme", "e", ["zeta"])
    for change in (
        lambda: service.deploy(tx, "acme", "e", "m@1"),
        lambda: service.rollback(tx, "acme", "e"),
        lambda: service.deploy_ensemble(tx, "acme", "e", {"m@1": 0.5, "own@1": 0.5}),
    ):
        code, message = refusal(change)
        assert (code, message.partition(", which")[0]) == conflict


def test_the_end_of_either_is_the_end_of_it(tx: Connection, plane: DataPlane) -> None:
    models.share(tx, "default", "m", ["acme"])
    live(tx, plane, "m@1")
    assert shares.stop(tx, "default") == 0
    number = tenancy.revision(tx)
    assert planned(tx).halted
    shares.stop(tx, "default")
    assert tenancy.revision(tx) == number, "once is enough"
    models.share(tx, "default", "m", ["acme"])
    shares.erase(tx, "acme")
    assert planned(tx).halted


def test_an_alias_that_others_follow_beyond_their_quota_halts_nothing(
    tx: Connection, plane: DataPlane
) -> None:
    """Two endpoints have one version; one of them follows the owner's alias to another."""
    registry.set_alias(tx, "default", "m@1", "best")
    models.share(tx, "default", "m", ["acme"])
    service.deploy(tx, "acme", "pinned", "m@1")
    live(tx, plane, "m:best")
    who = Principal(DEFAULT_TENANT, "key_admin", frozenset({"*"}))
    limits.put(tx, who, "acme", [Wanted("models", 1)], service.callee)
    registry.set_alias(tx, "default", "m@2", "best")
    plane.settle(3)
    shown = service.show(tx, "acme", "e")
    assert weights(shown.serving) == {"default--m@1": 100}
    assert shown.error is not None
    assert shown.error["code"] == "exhausted"


def test_rows_are_the_same_in_postgresql(tmp_path: Path, postgres_url: str) -> None:
    parts = open_parts(load({}, home=tmp_path / "pg", database_url=postgres_url))
    try:
        with parts.db.write() as tx:
            for name in ("lender", "acme"):
                tenants.add(tx, name)
            plane = DataPlane(tx)
            register(tx, "m@1", regression(*NUMBERS), "lender")
            models.share(tx, "lender", "m", ["acme", "*"])
            assert live(tx, plane, "m@1").status == "live"
            after = tenancy.revision(tx)
            mark = revisions.mark(tx, after)
            assert models.withdraw(tx, "lender", "m", ["*"]).shared == ["acme"]
            assert service.show(tx, "acme", "e").status == "live"
            models.withdraw(tx, "lender", "m", [])
            found = deltas.delta(tx, "key", after, mark)
            assert found is not None
            [endpoint] = msgspec.json.decode(found, type=PlanDelta).endpoints
            assert endpoint.halted
            models.share(tx, "lender", "m", ["acme"])
            assert service.lent(tx, "lender", registry.resolve(tx, "lender", "m"))
            shares.stop(tx, "lender")
            assert models.listing(tx, "acme") == []
    finally:
        parts.db.close()
