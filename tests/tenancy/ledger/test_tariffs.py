"""Money and tiers: exact, and the same however a month is divided."""

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapster.contract.errors import TapsterError
from tapster.tenancy.ledger import money
from tapster.tenancy.ledger.tariffs import Piece, Tier, charge, dearest

PRICES = st.integers(0, 2 * money.NANO)
BOUNDS = st.integers(0, 60)
TIERS = st.dictionaries(
    BOUNDS,
    st.dictionaries(st.sampled_from(["request", "row", "compute"]), PRICES, min_size=1),
    max_size=4,
).map(lambda made: tuple(Tier(above, made[above]) for above in sorted(made)))
UNITS = {"requests": 1, "rows": 1, "compute": 10**9}
GROWTH = st.fixed_dictionaries(
    {"requests": st.integers(0, 40), "rows": st.integers(0, 40), "errors": st.integers(0, 3),
     "compute": st.integers(0, 40 * 10**9)}
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "nano"),
    [
        ("0", 0),
        ("1", 10**9),
        ("0.000000001", 1),
        ("1e-6", 1000),
        ("1000", 10**12),
        (".5", 5 * 10**8),
    ],
)
def test_an_amount_is_whole_billionths(text: str, nano: int) -> None:
    assert money.parse(text) == nano
    assert money.parse(money.spell(nano)) == nano


@pytest.mark.parametrize(
    "text",
    ["", "x", "-1", "1,5", "0.0000000001", "1e-10", "1000.000000001", "1e999", "nan", "inf",
     "1_000", "\uff11", "1.2.3", "0x1", " 1", "1 ", "9" * 400, "e5", "."],
)  # fmt: skip
def test_what_is_no_price_is_refused(text: str) -> None:
    with pytest.raises(TapsterError) as refused:
        money.parse(text, "row")
    assert (refused.value.code, refused.value.field) == ("invalid", "row")


@given(nano=st.integers(-(10**20), 10**20))
def test_a_spelled_amount_is_exact(nano: int) -> None:
    text = money.spell(nano)
    assert Decimal(text) * money.NANO == nano
    assert len(text.partition(".")[2]) >= 2


def test_a_line_is_split_at_the_edge_of_a_tier() -> None:
    tariff = (Tier(0, {"request": 5, "row": 10}), Tier(100, {"row": 4}), Tier(200, {"row": 1}))
    pieces = charge(tariff, {"rows": 90}, {"requests": 2, "rows": 150, "errors": 1})
    assert pieces == [
        Piece(0, {"requests": 2, "rows": 10, "errors": 1}, 2 * 5 + 10 * 10),
        Piece(100, {"rows": 100}, 100 * 4),
        Piece(200, {"rows": 40}, 40 * 1),
    ]


def test_compute_is_priced_by_the_second_and_rounded_down_once() -> None:
    tariff = (Tier(0, {"compute": 1_000}),)
    used, amount = 0, 0
    for _ in range(1000):
        [piece] = charge(tariff, {"compute": used}, {"compute": 999_999})
        used, amount = used + 999_999, amount + piece.amount
    assert amount == 1_000 * used // 10**9


def test_without_a_price_all_is_kept_and_nothing_costs() -> None:
    assert charge((), {}, {"rows": 3, "errors": 1}) == [Piece(0, {"rows": 3, "errors": 1}, 0)]
    tiers = (Tier(10, {"row": 7}),)
    assert charge(tiers, {"rows": 8}, {"rows": 4}) == [
        Piece(0, {"rows": 2}, 0),
        Piece(10, {"rows": 2}, 14),
    ]


def _cost(tariff: tuple[Tier, ...], totals: dict[str, int]) -> int:
    """By hand: every tier's part of every counter, each rounded down."""
    found = 0
    for rate, counter in (("request", "requests"), ("row", "rows"), ("compute", "compute")):
        tiers = [(tier.above * UNITS[counter], tier.rates[rate]) for tier in tariff
                 if rate in tier.rates]  # fmt: skip
        for place, (low, price) in enumerate(tiers):
            high = tiers[place + 1][0] if place + 1 < len(tiers) else None
            total = totals[counter] if high is None else min(totals[counter], high)
            found += max(total - low, 0) * price // UNITS[counter]
    return found


@given(tariff=TIERS, growth=st.lists(GROWTH, max_size=6))
def test_a_month_costs_the_same_however_it_is_divided(
    tariff: tuple[Tier, ...], growth: list[dict[str, int]]
) -> None:
    totals: dict[str, int] = dict.fromkeys(("requests", "rows", "errors", "compute"), 0)
    pieces: list[Piece] = []
    for grown in growth:
        found = charge(tariff, totals, grown)
        for name in totals:
            assert sum(piece.counts.get(name, 0) for piece in found) == grown[name]
            totals[name] += grown[name]
        pieces += found
    assert sum(piece.amount for piece in pieces) == _cost(tariff, totals)
    most: dict[str, Any] = dearest(tariff)
    for piece in pieces:
        bound = sum(
            most.get(rate, 0) * piece.counts.get(counter, 0) / UNITS[counter]
            for rate, counter in (("request", "requests"), ("row", "rows"), ("compute", "compute"))
        )
        assert piece.amount <= bound + 1, "what is reserved by the dearest tier is enough"
