"""The table of rights, and who may give what."""

import pytest

from tapster.contract.control import INSTALLATION, Principal
from tapster.tenancy.rights import RIGHTS, ROLES, covers, holds, known


def test_roles_are_made_of_rights_there_are() -> None:
    assert set(ROLES) == {"owner", "admin", "developer", "operator", "consumer", "auditor"}
    assert {right for held in ROLES.values() for right in held} <= {"*", *RIGHTS}
    assert set(RIGHTS) >= INSTALLATION
    assert ROLES["consumer"] == {"predict"}
    assert not any(right.endswith(":write") for right in ROLES["auditor"])


@pytest.mark.parametrize(
    ("held", "wanted", "may_give"),
    [
        ({"*"}, {"*"}, True),
        ({"*"}, {"models:*", "predict"}, True),
        (set(RIGHTS), {"*"}, False),
        ({"models:*"}, {"models:read", "models:write", "models:*"}, True),
        ({"models:read", "models:write"}, {"models:*"}, True),
        ({"models:read"}, {"models:*"}, False),
        ({"models:read"}, {"models:write"}, False),
        ({"models:*"}, {"modelsx:read"}, False),
        ({"predict"}, {"predict"}, True),
        ({"predict"}, {"predict", "keys:write"}, False),
        (set(), set(), True),
    ],
)
def test_who_may_give_what(held: set[str], wanted: set[str], may_give: bool) -> None:
    assert covers(held, wanted) is may_give
    if may_give:
        assert all(holds(held, right) for right in wanted if not right.endswith("*"))


@pytest.mark.parametrize(
    ("right", "there"),
    [("predict", True), ("models:*", True), ("*", True), ("models", False), ("models:", False),
     (":*", False), ("nothing:*", False), ("", False), ("models:read ", False), ("*:read", False)],
)  # fmt: skip
def test_what_is_a_right(right: str, there: bool) -> None:
    assert known(right) is there


def test_rights_over_the_installation_count_in_its_own_tenant_only() -> None:
    for right in INSTALLATION:
        assert Principal("default", "k", frozenset({"*"})).may(right)
        assert not Principal("acme", "k", frozenset({"*", right})).may(right)
