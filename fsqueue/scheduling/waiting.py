"""Hold what waits in a spool, best last, in little memory and for any taste.

Names are kept as bytes (`rolls.py`) and taken apart when they are looked at: a million of them are
45 MB, and would be 300 as `ClaimName`. There is a lot of names for each kind, in runs of some
thousands that are sorted once, by cost. A worker's taste, which changes with every model that it
loads and every claim that fails, says which lot comes first; no name is sorted again for it.

The order is that of `choose.in_order`.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from fsqueue.pool.name_sets import NameList
from fsqueue.pool.names import ClaimName, is_waiting
from fsqueue.pool.requirements import base_of
from fsqueue.scheduling.choose import Fondness, Preferences

RUN: Final = 8192
"""Names that are sorted at a time; what has fewer is one run."""


class Lot:
    """Names of one kind, the dearest last."""

    def __init__(self) -> None:
        self._runs: list[tuple[tuple[int, str], int, NameList]] = []
        """Each with the key of its last name, by which they are in order, and a number."""
        self._fresh: list[str] = []
        self._len = 0

    def add(self, text: str) -> None:
        """Add a name; call `seal` after the last one."""
        self._fresh.append(text)
        if len(self._fresh) == RUN:
            self.seal()

    def seal(self) -> None:
        """Put what was added in order."""
        if self._fresh:
            self._fresh.sort(key=_id)
            self._fresh.sort(key=_cost)
            self._len += len(self._fresh)
            insort(self._runs, (_key(self._fresh[-1]), len(self._runs), NameList(self._fresh)))
            self._fresh = []

    def __len__(self) -> int:
        return self._len

    def __iter__(self) -> Iterator[str]:
        return heapq.merge(*(roll for _, _, roll in self._runs), key=_key)

    def __reversed__(self) -> Iterator[str]:
        return reversed(self._runs[0][2]) if len(self._runs) == 1 else self._dearest_first()

    def _dearest_first(self) -> Iterator[str]:
        left = self._runs.copy()
        streams: dict[
            int, Iterator[str]
        ] = {}  # a run is opened when it is its turn: most never are
        ahead: dict[int, str] = {}
        while left:
            _, number, roll = left.pop()
            if number not in streams:
                streams[number] = reversed(roll)
                ahead[number] = next(streams[number])
            yield ahead[number]
            if (text := next(streams[number], None)) is not None:
                ahead[number] = text
                insort(left, (_key(text), number, roll))

    @property
    def last(self) -> str:
        """The dearest name; IndexError if there is none."""
        return self._runs[-1][2].last

    def pop(self) -> str:
        """Take the dearest name off; IndexError if there is none."""
        text = self._runs[-1][2].pop()
        self._moved(-1)
        return text

    def strike(self, text: str) -> bool:
        """Take a name, most likely the dearest, off; say whether it was there."""
        if self._runs and text == self.last:
            self.pop()
            return True
        key = _key(text)
        for index in range(len(self._runs) - 1, -1, -1):
            last, _, roll = self._runs[index]
            if len(self._runs) > 1 and last < key:
                break
            if roll.remove(text, _key):
                self._moved(index)
                return True
        return False

    def _moved(self, index: int) -> None:
        """Put a run, from which one name was taken, where it belongs now."""
        self._len -= 1
        _, number, roll = self._runs[index]
        if not roll:
            del self._runs[index]
        elif len(self._runs) > 1:  # of one alone nobody needs the key
            del self._runs[index]
            insort(self._runs, (_key(roll.last), number, roll))

    def dearer(self, cost: float) -> int:
        """Count the names that cost more."""
        return sum(roll.above(cost, _cost) for _, _, roll in self._runs)


class WaitingClaims:
    """The claims of one listing. What is not the name of a claim that waits is left out."""

    def __init__(self, texts: Iterable[str] = (), preferences: Preferences | None = None) -> None:
        preferences = preferences or Preferences()
        lots: defaultdict[tuple[str, bool], Lot] = defaultdict(Lot)
        for text in filter(is_waiting, texts):
            id, kind, _ = text.split(".", 2)
            lots[kind, id not in preferences.failed_here].add(text)
        for lot in lots.values():
            lot.seal()
        self._lots = dict(lots)
        self.suit(preferences)

    def suit(self, preferences: Preferences) -> None:
        """Put the lots in the order of a taste. What it does not allow is only counted."""
        ranks: defaultdict[Fondness, list[Lot]] = defaultdict(list)
        self._able = {
            key: lot for key, lot in self._lots.items() if lot and preferences.allows(key[0])
        }
        for (kind, lucky), lot in self._able.items():
            ranks[lucky, *preferences.fondness(kind)].append(lot)
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
        return _parsed(self._best_lot().last)

    def pop(self) -> ClaimName:
        """Return the claim to take first, and take it off the list."""
        self._len -= 1
        return _parsed(self._best_lot().pop())

    def _best_lot(self) -> Lot:
        while not (lots := [lot for lot in self._ranks[-1] if lot]):
            self._ranks.pop()
        return lots[0] if len(lots) == 1 else max(lots, key=lambda lot: _key(lot.last))

    def strike(self, name: ClaimName) -> None:
        """Take one name, most likely the last of its lot, off the list."""
        for lucky in (True, False):
            lot = self._able.get((name.kind, lucky))
            if lot is not None and lot.strike(str(name)):
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
                late += lot.dearer(rates[kind] * time_left_s)
        return late


def _merit(name: ClaimName) -> tuple[int, str]:
    return name.cost, name.id


def _id(text: str) -> str:
    return text.partition(".")[0]


def _cost(text: str) -> int:
    return int(text.split(".", 3)[2][1:])


def _key(text: str) -> tuple[int, str]:
    id, _, cost, _ = text.split(".", 3)
    return int(cost[1:]), id


def _parsed(text: str) -> ClaimName:
    name = ClaimName.parse(text)
    assert name is not None, text
    return name
