"""Hold a million names: as 64-bit fingerprints at nine bytes each, or as text at 41 bytes each.

A fingerprint is the name's `hash`, whose key differs in every process unless PYTHONHASHSEED is set.
Among a million names, two share one with a chance of one in 40 million. So fingerprints may decide
what to look at again, and correct a count; nothing is reported or moved because of them alone.

What this module does not know: what the names are.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Any, Final

PARTS: Final = 64
"""Fingerprints are compared part by part: a set takes about 70 bytes for each."""

mark: Final = hash
"""The fingerprint of a name."""


class Fingerprints:
    """The fingerprints of some names; a name may be in it more than once."""

    __slots__ = ("parts",)

    def __init__(self, marks: Iterable[int] = ()) -> None:
        self.parts = [array("q") for _ in range(PARTS)]
        self.extend(marks)

    def extend(self, marks: Iterable[int]) -> None:
        """Add the fingerprints of more names."""
        append = [part.append for part in self.parts]
        for each in marks:
            append[each % PARTS](each)

    def add(self, text: str) -> None:
        """Add a name."""
        each = hash(text)
        self.parts[each % PARTS].append(each)

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __le__(self, other: Fingerprints) -> bool:
        """Return whether `other` holds every fingerprint of this one."""
        return all(
            set(mine).issubset(its) for mine, its in zip(self.parts, other.parts, strict=True)
        )


def sets(*groups: Fingerprints) -> Iterator[list[set[int]]]:
    """Yield one part at a time: its fingerprints in each group."""
    for parts in zip(*(group.parts for group in groups), strict=True):
        yield list(map(set, parts))


def distinct(group: Fingerprints) -> int:
    """Return how many different fingerprints there are."""
    return sum(len(set(part)) for part in group.parts)


def repeated(*groups: Fingerprints) -> set[int]:
    """Return the fingerprints that occur more than once in all groups together."""
    found: set[int] = set()
    for parts in zip(*(group.parts for group in groups), strict=True):
        if len(set().union(*parts)) < sum(map(len, parts)):
            counts = Counter(chain.from_iterable(parts))
            found.update(each for each, count in counts.items() if count > 1)
    return found


# ---- lists of names in little more than their bytes ----
#
# A `str` of 40 letters takes 89 bytes, and its place in a list 8 more. A NameList keeps names in
# blocks of bytes, 41 for each, but for the few in use. Names are printable: they hold no newline.

BLOCK: Final = 256
"""How many names a block holds."""


class NameList:
    """Names in a fixed order, of which the last can be removed."""

    __slots__ = ("_blocks", "_tail", "_len")

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._blocks: list[bytes] = []
        self._tail: list[str] = []
        self._len = 0
        texts = iter(texts)
        while batch := list(islice(texts, BLOCK)):
            self._blocks.append("\n".join(batch).encode())
            self._len += len(batch)

    def __len__(self) -> int:
        return self._len

    def __iter__(self) -> Iterator[str]:
        for block in self._blocks:
            yield from _names(block)
        yield from self._tail

    def __reversed__(self) -> Iterator[str]:
        if self:
            yield from reversed(self._open())
        for block in reversed(self._blocks):
            yield from reversed(_names(block))

    @property
    def last(self) -> str:
        """The last name; IndexError if there is none."""
        return self._open()[-1]

    def pop(self) -> str:
        """Remove and return the last name; IndexError if there is none."""
        text = self._open().pop()
        self._len -= 1
        return text

    def _open(self) -> list[str]:
        if not self._tail:
            self._tail = _names(self._blocks.pop())
        return self._tail

    def remove(self, text: str, key: Callable[[str], Any]) -> bool:
        """Remove a name from a list sorted by `key`; return whether it was there."""
        mine, at = key(text), -1
        found = self._tail
        if not found or mine < key(found[0]):
            at = bisect_right(self._blocks, mine, key=lambda block: key(_first(block))) - 1
            found = _names(self._blocks[at]) if at >= 0 else []
        if text not in found:
            return False
        found.remove(text)
        self._len -= 1
        if at >= 0:
            self._blocks[at : at + 1] = ["\n".join(found).encode()] if found else []
        return True

    def above(self, limit: Any, key: Callable[[str], Any]) -> int:
        """Count the names of a list sorted by `key` whose key is larger than `limit`."""
        at = bisect_right(self._blocks, limit, key=lambda block: key(_first(block)))
        parts = [_names(self._blocks[at - 1])] if at else []
        whole = sum(block.count(b"\n") + 1 for block in self._blocks[at:])
        parts.append(self._tail)
        return whole + sum(len(part) - bisect_right(part, limit, key=key) for part in parts)


def _names(block: bytes) -> list[str]:
    return block.decode().split("\n")


def _first(block: bytes) -> str:
    return block.partition(b"\n")[0].decode()
