"""The account of a limit's period: what is given away, and how much one machine may get of it.

A machine and day *holds* the greater of what it may use and what it has counted. It may use what it
was granted, beyond what it had counted before its first grant of that day: that was used before
there was a limit, but within its period. The sum of what is held never grows beyond the amount.
Once a machine has counted its last of a day, what it may use of it shrinks to what it counted, and
the rest is free again. Pure arithmetic over whole units; no clock is asked.
"""

from collections.abc import Mapping
from typing import Final

Place = tuple[str, str]  # a machine, and a day of it
# Near the end an account is given away in shares of what is left, but in pieces no smaller than
# this part of the amount.
_PIECES: Final = 10_000


def held(usable: Mapping[Place, int], counted: Mapping[Place, int]) -> int:
    """What all machines hold together."""
    places = usable.keys() | counted.keys()
    return sum(max(usable.get(place, 0), counted.get(place, 0)) for place in places)


def grown(
    place: Place,
    wanted: int,
    amount: int,
    usable: Mapping[Place, int],
    counted: Mapping[Place, int],
) -> tuple[int, int]:
    """What `place` may use in all when it wants to use `wanted`, and what is left for anybody.

    Never less than it may use already; never so much that more than `amount` would be held.
    """
    before = usable.get(place, counted.get(place, 0))
    left = max(0, amount - held(usable, counted))
    more = _piece(wanted - before, left, amount, _sharers(place, usable))
    return before + more, left - more


def _sharers(place: Place, usable: Mapping[Place, int]) -> int:
    """Machines that were granted something that day, this one among them."""
    return len({place[0], *(machine for machine, day in usable if day == place[1])})


def _piece(wanted: int, left: int, amount: int, sharers: int) -> int:
    """How many units to give: what is wanted, or a share of the rest where that is scarce."""
    share = max(left // (2 * sharers), amount // _PIECES, 1)
    return max(0, min(wanted, left, share))
