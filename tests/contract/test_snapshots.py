"""Whole plans as bytes: what goes in is found, nothing else is, and no byte of it is trusted."""

import hashlib

import pytest

from tapster.contract.plan import KeyGrant, LimitGrant, PackageRef, ServingPlan, TenantGrant
from tapster.contract.snapshots import pack, unpack


def digest(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def key(number: int, **more: object) -> KeyGrant:
    return KeyGrant(f"key_{number}", digest(number).hex(), "acme", ("predict",), **more)  # type: ignore[arg-type]


def test_every_key_is_found_and_no_other() -> None:
    keys = tuple(key(number, expires=float(number)) for number in range(1000))
    snapshot = unpack(pack(ServingPlan(7, keys=keys, mark="abc")))
    assert (snapshot.plan.number, snapshot.plan.mark, snapshot.plan.keys) == (7, "abc", ())
    assert len(snapshot.keys) == 1000
    assert all(snapshot.key(digest(number)) == keys[number] for number in range(1000))
    assert all(snapshot.key(digest(number)) is None for number in range(1000, 2000))


def test_keys_whose_hashes_begin_alike_are_told_apart() -> None:
    hashes = [b"\7" * 8 + bytes([number]) * 24 for number in range(5)]
    keys = [KeyGrant(str(number), each.hex(), "t", ()) for number, each in enumerate(hashes)]
    snapshot = unpack(pack(ServingPlan(1), keys[1:4]))
    found = [snapshot.key(each) for each in hashes]
    assert found == [None, *keys[1:4], None]


def test_tenants_are_found_by_name() -> None:
    limits = (LimitGrant("lim_1", "rows", 5, "day"), LimitGrant("lim_2", "rate", 1000, burst=3))
    acme = TenantGrant("acme", weight=2.0, limits=limits)
    snapshot = unpack(pack(ServingPlan(1, tenants=(acme, TenantGrant("b", suspended=True)))))
    assert snapshot.tenant("acme") == acme
    assert snapshot.tenant("b") == TenantGrant("b", suspended=True)
    assert snapshot.tenant("") is None


def test_nothing_is_a_plan_too() -> None:
    snapshot = unpack(pack(ServingPlan(0)))
    assert (len(snapshot.keys), snapshot.key(digest(1)), snapshot.tenant("a")) == (0, None, None)


def test_what_is_cut_off_or_no_plan_is_refused() -> None:
    plan = ServingPlan(1, packages=(PackageRef("d", "k"),), keys=(key(1), key(2)))
    whole = pack(plan, tenants=[TenantGrant("a")])
    for end in range(len(whole)):
        with pytest.raises(ValueError):  # noqa: PT011 - any of them
            unpack(whole[:end])
    for bad in (b"", b"{}", b"tapster plan 2\n" + whole[15:], whole[:19] + b"x" + whole[20:]):
        with pytest.raises(ValueError):  # noqa: PT011 - any of them
            unpack(bad)


def test_a_key_takes_little_room() -> None:
    keys = (key(number) for number in range(10_000))
    assert len(pack(ServingPlan(1), keys)) < 140 * 10_000
