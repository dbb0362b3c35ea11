"""The waiting claims of a spool, best last, in little memory and for any preferences.

Names are kept as bytes (`storage.name_sets`) and parsed when they are looked at: a million of them
take 45 MB, and would take 300 as `ClaimName`. The names of each kind and standing are one group, in
runs of some thousands that are sorted once, by cost. A worker's preferences, which change with
every model that it loads and every claim that fails, decide which group comes first; no name is
sorted again.

The order is that of `choose.in_order`.
"""

from __future__ import annotations

import heapq
import math
from bisect import insort
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from fsqueue.pool.names import ClaimName, is_waiting, priority_of, vain_of
from fsqueue.pool.requirements import base_of
from fsqueue.scheduling.choose import ClaimRank, ClaimStanding, Preferences, merit
from fsqueue.storage.name_sets import NameList

RUN: Final = 8192
"""How many names are sorted at a time."""
RETRIED_MAX: Final = 200


class KindGroup:
    """Names of one kind, the most expensive last; of what was put back in vain, the cheapest."""

    def __init__(self, *, vain: bool = False) -> None:
        self._vain = vain
        self._cost = _minus_cost if vain else _cost
        self._runs: list[tuple[tuple[int, str], int, NameList]] = []
        """Sorted by the key of their last name; each with that key and a number."""
        self._fresh: list[str] = []
        self._len = 0

    def add(self, text: str) -> None:
        """Add a name; call `seal` after the last one."""
        self._fresh.append(text)
        if len(self._fresh) == RUN:
            self.seal()

    def seal(self) -> None:
        """Sort what was added."""
        if self._fresh:
            self._fresh.sort(key=_id)
            self._fresh.sort(key=self._cost)
            self._len += len(self._fresh)
            insort(self._runs, (self.key(self._fresh[-1]), len(self._runs), NameList(self._fresh)))
            self._fresh = []

    def __len__(self) -> int:
        return self._len

    def key(self, text: str) -> tuple[int, str]:
        """Return what the names are sorted by, the best last."""
        return self._cost(text), _id(text)

    def __iter__(self) -> Iterator[str]:
        return heapq.merge(*(names for _, _, names in self._runs), key=self.key)

    def __reversed__(self) -> Iterator[str]:
        return reversed(self._runs[0][2]) if len(self._runs) == 1 else self._best_first()

    def _best_first(self) -> Iterator[str]:
        left = self._runs.copy()
        streams: dict[
            int, Iterator[str]
        ] = {}  # a run is opened when it is its turn: most never are
        ahead: dict[int, str] = {}
        while left:
            _, number, names = left.pop()
            if number not in streams:
                streams[number] = reversed(names)
                ahead[number] = next(streams[number])
            yield ahead[number]
            if (text := next(streams[number], None)) is not None:
                ahead[number] = text
                insort(left, (self.key(text), number, names))

    @property
    def last(self) -> str:
        """The best name; IndexError if there is none."""
        return self._runs[-1][2].last

    def pop(self) -> str:
        """Remove the best name and return it; IndexError if there is none."""
        text = self._runs[-1][2].pop()
        self._moved(-1)
        return text

    def remove(self, text: str) -> bool:
        """Remove a name, most likely the best; return whether it was there."""
        if self._runs and text == self.last:
            self.pop()
            return True
        key = self.key(text)
        for index in range(len(self._runs) - 1, -1, -1):
            last, _, names = self._runs[index]
            if len(self._runs) > 1 and last < key:
                break
            if names.remove(text, self.key):
                self._moved(index)
                return True
        return False

    def _moved(self, index: int) -> None:
        """Put a run from which one name was removed where it belongs now."""
        self._len -= 1
        _, number, names = self._runs[index]
        if not names:
            del self._runs[index]
        elif len(self._runs) > 1:  # the key of a single run is never used
            del self._runs[index]
            insort(self._runs, (self.key(names.last), number, names))

    def costing_more(self, cost: float) -> int:
        """Count the names that cost more."""
        if self._vain:
            least = math.nextafter(-cost, -math.inf)
            return self._len - sum(names.above(least, self._cost) for _, _, names in self._runs)
        return sum(names.above(cost, self._cost) for _, _, names in self._runs)


class WaitingClaims:
    """The claims of one listing. Anything that is not the name of a waiting claim is left out."""

    def __init__(self, texts: Iterable[str] = (), preferences: Preferences | None = None) -> None:
        preferences = preferences or Preferences()
        self.retried: list[str] = []
        """The names that have an attempt behind them, up to a limit."""
        groups: dict[tuple[str, ClaimStanding], KindGroup] = {}
        for text in filter(is_waiting, texts):
            id, kind, _ = text.split(".", 2)
            vain = vain_of(text)
            key = kind, preferences.standing(id, vain, priority_of(text))
            if (group := groups.get(key)) is None:
                group = groups[key] = KindGroup(vain=vain > 0)
            group.add(text)
            if ".a0." not in text and len(self.retried) < RETRIED_MAX:
                self.retried.append(text)
        for group in groups.values():
            group.seal()
        self._groups = groups
        self.apply(preferences)

    def apply(self, preferences: Preferences) -> None:
        """Order the groups by preferences. Claims that they do not allow are only counted."""
        ranks: defaultdict[ClaimRank, list[KindGroup]] = defaultdict(list)
        self._able = {
            (kind, standing): group
            for (kind, standing), group in self._groups.items()
            if group and preferences.allows(kind) and not _is_left(standing)
        }
        for (kind, standing), group in self._able.items():
            ranks[standing, *preferences.rank(kind)].append(group)
        self._ranks = [ranks[key] for key in sorted(ranks)]
        self._len = sum(map(len, self._able.values()))

    @property
    def all(self) -> int:
        """How many wait, including those that the preferences do not allow."""
        return sum(map(len, self._groups.values()))

    def __len__(self) -> int:
        return self._len

    def __iter__(self) -> Iterator[ClaimName]:
        for rank in self._ranks:
            yield from heapq.merge(*(map(_parsed, group) for group in rank), key=_merit)

    def __reversed__(self) -> Iterator[ClaimName]:
        for rank in reversed(self._ranks):
            streams = (map(_parsed, reversed(group)) for group in rank)
            yield from heapq.merge(*streams, key=_merit, reverse=True)

    def best(self) -> ClaimName:
        """Return the claim to take first; IndexError if there is none."""
        return _parsed(self._best_group().last)

    def pop(self) -> ClaimName:
        """Remove the claim to take first and return it."""
        self._len -= 1
        return _parsed(self._best_group().pop())

    def _best_group(self) -> KindGroup:
        while not (groups := [group for group in self._ranks[-1] if group]):
            self._ranks.pop()
        return (
            groups[0] if len(groups) == 1 else max(groups, key=lambda group: group.key(group.last))
        )

    def remove(self, name: ClaimName) -> None:
        """Remove one name, most likely the last of its group."""
        for (kind, _), group in self._able.items():
            if kind == name.kind and group.remove(str(name)):
                self._len -= 1
                return

    def bases(self) -> set[str]:
        """Return what would have to be loaded for the claims on the list."""
        return {base_of(kind) for (kind, _), group in self._able.items() if group}

    def count_too_long(self, rates: Mapping[str, float], time_left_s: float) -> int:
        """Count the claims that would, at measured rates, not finish in time."""
        late = 0
        for (kind, _), group in self._able.items():
            if kind in rates:
                late += group.costing_more(rates[kind] * time_left_s)
        return late

    def put_back_in_vain(self) -> Iterator[ClaimName]:
        """Yield the claims that this worker could take but that were put back in vain."""
        for (_, (_, _, vain, _)), group in self._able.items():
            if vain:
                yield from map(_parsed, group)


def _is_left(standing: ClaimStanding) -> bool:
    return not standing[0]


def _merit(name: ClaimName) -> tuple[int, str]:
    return merit(name), name.id


def _id(text: str) -> str:
    return text.partition(".")[0]


def _cost(text: str) -> int:
    return int(text.split(".", 3)[2][1:])


def _minus_cost(text: str) -> int:
    return -_cost(text)


def _parsed(text: str) -> ClaimName:
    name = ClaimName.parse(text)
    assert name is not None, text
    return name
