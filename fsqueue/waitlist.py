"""Hold what waits in a spool, best last, in little memory and for any taste.

Names are kept as text and taken apart when they are looked at: a million of them are 110 MB, and
would be 300 as `ClaimName`. There is a lot of names for each kind, sorted once, by cost. A worker's
taste, which changes with every model that it loads and every claim that fails, says which lot comes
first; no name is sorted again for it.

The order is that of `choose.in_order`.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from fsqueue.choose import Fondness, Taste
from fsqueue.kinds import base_of
from fsqueue.names import ClaimName, is_waiting

Lot = list[str]


class Waitlist:
    """The claims of one listing. What is not the name of a claim that waits is left out."""

    def __init__(self, texts: Iterable[str] = (), taste: Taste | None = None) -> None:
        taste = taste or Taste()
        lots: defaultdict[tuple[str, bool], Lot] = defaultdict(list)
        for text in filter(is_waiting, texts):
            id, kind, _ = text.split(".", 2)
            lots[kind, id not in taste.failed_here].append(text)
        for lot in lots.values():
            lot.sort(key=_id)
            lot.sort(key=_cost)
        self._lots = dict(lots)
        self.suit(taste)

    def suit(self, taste: Taste) -> None:
        """Put the lots in the order of a taste. What it does not allow is only counted."""
        ranks: defaultdict[Fondness, list[Lot]] = defaultdict(list)
        self._able = {key: lot for key, lot in self._lots.items() if lot and taste.allows(key[0])}
        for (kind, lucky), lot in self._able.items():
            ranks[lucky, *taste.fondness(kind)].append(lot)
        self._ranks = [ranks[fondness] for fondness in sorted(ranks)]
        self._len = sum(map(len, self._able.values()))

    @property
    def all(self) -> int:
        """How many wait, those that the taste does not allow among them."""
        return sum(map(len, self._lots.values()))

    def __len__(self) -> int:
        return self._len

    def __iter__(self) -> Iterator[ClaimName]:
        for rank in self._ranks:
            yield from heapq.merge(*(map(_parsed, lot) for lot in rank), key=_merit)

    def __reversed__(self) -> Iterator[ClaimName]:
        for rank in reversed(self._ranks):
            streams = (map(_parsed, reversed(lot)) for lot in rank)
            yield from heapq.merge(*streams, key=_merit, reverse=True)

    def best(self) -> ClaimName:
        """Return the claim to take first; IndexError if there is none."""
        return _parsed(self._best_lot()[-1])

    def pop(self) -> ClaimName:
        """Return the claim to take first, and take it off the list."""
        self._len -= 1
        return _parsed(self._best_lot().pop())

    def _best_lot(self) -> Lot:
        while not (lots := [lot for lot in self._ranks[-1] if lot]):
            self._ranks.pop()
        return lots[0] if len(lots) == 1 else max(lots, key=lambda lot: _merit(_parsed(lot[-1])))

    def strike(self, name: ClaimName) -> None:
        """Take one name, most likely the last of its lot, off the list."""
        text = str(name)
        for lucky in (True, False):
            lot = self._able.get((name.kind, lucky), [])
            for index in range(len(lot) - 1, -1, -1):
                if lot[index] == text:
                    del lot[index]
                    self._len -= 1
                    return

    def bases(self) -> set[str]:
        """Return what would have to be loaded for the claims on the list."""
        return {base_of(kind) for (kind, _), lot in self._able.items() if lot}

    def count_too_long(self, rates: Mapping[str, float], time_left_s: float) -> int:
        """Count those that would, by measured rates, not end in time."""
        late = 0
        for (kind, _), lot in self._able.items():
            if kind in rates:
                late += len(lot) - bisect_right(lot, rates[kind] * time_left_s, key=_cost)
        return late


def _merit(name: ClaimName) -> tuple[int, str]:
    return name.cost, name.id


def _id(text: str) -> str:
    return text.partition(".")[0]


def _cost(text: str) -> int:
    return int(text.split(".", 3)[2][1:])


def _parsed(text: str) -> ClaimName:
    name = ClaimName.parse(text)
    assert name is not None, text
    return name
