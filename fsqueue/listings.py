"""Count what a directory of claims holds, in little memory: a mark and a cost for each claim."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from heapq import nlargest
from itertools import compress

from fsqueue.marks import mark
from fsqueue.names import id_and_cost


@dataclass(frozen=True, slots=True)
class Amount:
    """How many claims, and what they cost together."""

    claims: int = 0
    cost: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.claims + other.claims, self.cost + other.cost)

    def __sub__(self, other: Amount) -> Amount:
        return Amount(max(0, self.claims - other.claims), max(0, self.cost - other.cost))


class Listing:
    """The claims in one directory: a mark and the cost of each, 17 bytes, and no name."""

    def __init__(self, *, owned: bool = False) -> None:
        self._owned = owned
        self.marks = array("q")
        """Of the names by which they wait or waited: the same wherever a claim is seen."""
        self._costs = array("q")
        self._cost = 0
        self.assumed: Amount | None = Amount()
        """What may be here, as long as the directory could not be listed once."""

    def look(self, texts: Iterable[str]) -> None:
        """Take in a fresh listing. What is not the name of a claim in this state is left out."""
        marks, costs = array("q"), array("q")
        its = waiting_mark if self._owned else mark
        for text in texts:
            if (facts := id_and_cost(text, owned=self._owned)) is not None:
                marks.append(its(text))
                costs.append(facts[1])
        self.marks, self._costs, self._cost = marks, costs, sum(costs)
        self.assumed = None

    def drop_seen(self, twice: Set[int], seen: set[int]) -> None:
        """Of the claims in `twice`, drop those that are `seen` already, and see the others."""
        if twice.isdisjoint(self.marks):
            return
        kept = bytearray(b"\1") * len(self.marks)
        for index, each in enumerate(self.marks):
            if each in twice:
                kept[index] = each not in seen
                seen.add(each)
        self.marks = array("q", compress(self.marks, kept))
        self._costs = array("q", compress(self._costs, kept))
        self._cost = sum(self._costs)

    @property
    def amount(self) -> Amount:
        """How many claims are here, and what they cost."""
        return self.assumed or Amount(len(self.marks), self._cost)


def waiting_mark(text: str) -> int:
    """Return the mark of the name by which a claim waits or waited."""
    return mark(text.partition("@")[0])


def newest(texts: Iterable[str], count: int, *, shown: Sequence[str], fresh: Set[int]) -> list[str]:
    """Return the last `count` that came: those `shown` at the look before, and `fresh` since."""

    def rank(text: str) -> tuple[int, int, str]:
        if text in shown:
            return 1, shown.index(text), text
        return 2 * (waiting_mark(text) in fresh), 0, text

    owned = (text for text in texts if id_and_cost(text, owned=True) is not None)
    return nlargest(count, owned, key=rank)[::-1]
