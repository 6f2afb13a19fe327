"""Whoever is killed: what was answered is billed, to the unit, and no budget is overspent."""

from collections.abc import Callable

import pytest

from tests.conftest import Server
from tests.faults.scenarios import billing
from tests.faults.scenarios.billing import BUDGETED, FREE
from tests.faults.soak import scaled


@pytest.mark.soak
def test_answers_are_billed_whoever_is_killed(new_server: Callable[..., Server]) -> None:
    budget = round(scaled(20_000))
    seen = billing.bill(new_server(workers=2), scaled(600), budget)
    assert seen.kills > scaled(50)
    assert seen.differences == []
    for account in seen.accounts.values():
        assert account.wrong == []
        assert account.other <= {503}
        # What a killed worker had counted but not sent, its callers have not seen.
        assert account.answered <= account.billed <= account.answered + account.cut_off
        assert account.rows == account.billed
    assert seen.accounts[FREE].refused == 0
    assert seen.accounts[FREE].answered > scaled(30_000)
    assert seen.accounts[BUDGETED].refused > 0
    # Not one unit too many, and none is lost for ever.
    assert seen.accounts[BUDGETED].billed == budget
