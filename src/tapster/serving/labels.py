"""Which place of the shared counters is whose: a label is given a place, and may lose it again.

Layout, in 64-bit words:

    numbers | since | texts

Word i of `numbers` is 0 while place i is free, else a number that is used once in the life of the
file: whoever reads the same number before and after has read of one label only. It is written last
when a place is given and first when it is taken back, so a process killed in between leaves the
place free. `since` says since when nobody holds a place (seconds since 1970), 0 while somebody
does. A text is a 16-bit length and UTF-8 bytes. Place 0 is never given to anybody.
"""

from collections.abc import Callable
from typing import Any, Final

PLACES: Final = 4096
TEXT_WORDS: Final = 48
LABELS_WORDS: Final = PLACES * (2 + TEXT_WORDS)


class Labels:
    """The labels of places. Whoever calls `give`, `free` or `rest` holds the file's lock.

    `counter` is the word of the number that was used last; `clear` empties a place's counters.
    """

    def __init__(
        self, words: "memoryview[int]", counter: int, at: int, clear: Callable[[int], None]
    ) -> None:
        self._words = words
        self._counter = counter
        self._at = at
        self._since = at + PLACES
        self._texts = at + 2 * PLACES
        self._clear = clear
        # What this process has seen of the labels.
        self._known: dict[str, tuple[int, int]] = {}
        self._seen = 0

    def numbers(self) -> Any:
        """A copy of the numbers of all places, by place."""
        return _array(self._words)[self._at : self._at + PLACES].copy()

    def number(self, place: int) -> int:
        """The number by which a place was given; 0 while it is free."""
        return self._words[self._at + place]

    def text(self, place: int) -> str:
        """What a place has been given to."""
        start = self._texts + place * TEXT_WORDS
        data = self._words[start : start + TEXT_WORDS].tobytes()
        return data[2 : 2 + int.from_bytes(data[:2], "little")].decode(errors="replace")

    def all(self) -> list[tuple[int, int, str]]:
        """(place, number, text) of every place that is somebody's."""
        numbers = self.numbers()
        found = [(int(place), self.text(int(place))) for place in numbers.nonzero()[0]]
        # What is still given by the same number had its text when that was read.
        return [
            (place, number, text)
            for place, text in found
            if (number := self.number(place)) == numbers[place]
        ]

    def give(self, text: str) -> int:
        """The place of a label, given to it unless it has one; 0 when there is none."""
        self._learn()
        place, number = self._known.get(text, (0, 0))
        if number and self.number(place) == number:
            return place
        data = text.encode()
        place = self._free_place()
        if not place or len(data) > 8 * TEXT_WORDS - 2:
            return 0
        words, start = self._words, self._texts + place * TEXT_WORDS
        data = (len(data).to_bytes(2, "little") + data).ljust(8 * TEXT_WORDS, b"\0")
        words[start : start + TEXT_WORDS] = memoryview(data).cast("Q")
        self._clear(place)
        words[self._since + place] = 0
        number = words[self._counter] + 1
        words[self._counter] = number
        words[self._at + place] = number
        self._seen = number
        self._known[text] = place, number
        return place

    def rest(self, used: Any, now: int, patience: Callable[[int], int]) -> None:
        """Take back the places that nobody has held for long: `used` says who is held, by place.

        `patience` tells for how many seconds, if so many places are free.
        """
        numbers = self.numbers()
        mine = _array(self._words)
        since = mine[self._since : self._since + PLACES]
        given = numbers != 0
        since[given & used] = 0
        idle = given & ~used
        since[idle & ((since == 0) | (since > now))] = now
        longest = patience(PLACES - 1 - int(given.sum()))
        for place in (idle & (now - since.astype("int64") > longest)).nonzero()[0].tolist():
            mine[self._at + place] = 0

    def _learn(self) -> None:
        """See what others have given away."""
        if self._words[self._counter] == self._seen:
            return
        if len(self._known) > 2 * PLACES:
            self._known.clear()
            self._seen = 0
        numbers = self.numbers()
        for place in (numbers > self._seen).nonzero()[0].tolist():
            self._known[self.text(place)] = place, int(numbers[place])
        self._seen = self._words[self._counter]

    def _free_place(self) -> int:
        """The first free place; 0 when there is none."""
        free = self.numbers()[1:] == 0
        return int(free.argmax()) + 1 if free.any() else 0


def _array(words: "memoryview[int]") -> Any:
    """The words as an array. The supervisor, which gives no places, does without numpy."""
    import numpy as np

    return np.frombuffer(words, np.uint64)
