"""Know a million names again, at nine bytes each: by a mark of 64 bits.

A mark is the name's `hash`, keyed anew in every process unless PYTHONHASHSEED says otherwise. Two
of a million names share one with a chance of one in 40 million. So marks may say what is to be
looked at again, and by how much a count is to be corrected; nothing is reported, and nothing
moved, because of them alone.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Final

PARTS: Final = 64
"""What is compared is compared part by part: a set needs some 70 bytes for each of its marks."""

mark: Final = hash


class Marks:
    """The marks of some names; a name may be there more than once."""

    __slots__ = ("parts",)

    def __init__(self, marks: Iterable[int] = ()) -> None:
        self.parts = [array("q") for _ in range(PARTS)]
        self.extend(marks)

    def extend(self, marks: Iterable[int]) -> None:
        """Add the marks of more names."""
        parts = self.parts
        for each in marks:
            parts[each % PARTS].append(each)

    def add(self, text: str) -> None:
        """Add a name."""
        each = hash(text)
        self.parts[each % PARTS].append(each)

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __le__(self, other: Marks) -> bool:
        """Say whether all that is here is there."""
        return all(
            set(mine).issubset(its) for mine, its in zip(self.parts, other.parts, strict=True)
        )


def sets(*groups: Marks) -> Iterator[list[set[int]]]:
    """Yield the marks of each group, a part of all of them at a time."""
    for parts in zip(*(group.parts for group in groups), strict=True):
        yield list(map(set, parts))


def repeated(*groups: Marks) -> set[int]:
    """Return what is in all groups together more than once."""
    found: set[int] = set()
    for parts in zip(*(group.parts for group in groups), strict=True):
        if len(set().union(*parts)) < sum(map(len, parts)):
            counts = Counter(chain.from_iterable(parts))
            found.update(each for each, count in counts.items() if count > 1)
    return found
