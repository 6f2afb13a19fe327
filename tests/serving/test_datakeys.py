"""What a data plane makes of the data keys in its plan."""

import logging

import pytest

from tapster.contract.errors import TapsterError
from tapster.contract.plan import PackageRef
from tapster.core.envelope import Master, Masters, new_data_key
from tapster.serving.datakeys import PlanKeys

OLD, NEW = Master(b"o" * 32), Master(b"n" * 32)
KEY, LATER = new_data_key(), new_data_key()


def _package(*wrapped: str, tenant: str = "acme") -> PackageRef:
    return PackageRef("d", f"{tenant}/packages/d", wrapped[0], wrapped[1:])


def test_the_former_key_opens_until_the_plan_has_it_no_more() -> None:
    keys = PlanKeys(Masters(OLD))
    later, former = OLD.wrap("acme", LATER), OLD.wrap("acme", KEY)
    keys.learn([_package(former)])
    keys.add([_package(later, former)])
    assert keys.find("acme", KEY.id) == KEY
    assert keys.find("acme", LATER.id) == LATER
    keys.learn([_package(later)])
    with pytest.raises(TapsterError, match="not in the plan"):
        keys.find("acme", KEY.id)
    with pytest.raises(TapsterError, match="not in the plan"):
        keys.find("berlin", LATER.id)


def test_either_master_key_opens() -> None:
    keys = PlanKeys(Masters(NEW, OLD))
    keys.learn([_package(OLD.wrap("acme", KEY)), _package(NEW.wrap("b", LATER), tenant="b")])
    assert (keys.find("acme", KEY.id), keys.find("b", LATER.id)) == (KEY, LATER)


def test_what_another_master_key_wraps_leaves_in_force_what_was(
    caplog: pytest.LogCaptureFixture,
) -> None:
    keys = PlanKeys(Masters(OLD))
    keys.learn([_package(OLD.wrap("acme", KEY))])
    with caplog.at_level(logging.ERROR):
        keys.learn([_package(NEW.wrap("acme", KEY)), _package(NEW.wrap("b", LATER), tenant="b")])
        keys.add([_package(NEW.wrap("acme", KEY))])
    assert keys.find("acme", KEY.id) == KEY
    with pytest.raises(TapsterError, match="another master key"):
        keys.find("b", LATER.id)
    (told,) = caplog.messages
    assert NEW.name in told
    keys.learn([])
    with pytest.raises(TapsterError, match="not in the plan"):
        keys.find("acme", KEY.id)
