"""Hold many names, one after the other, in little more than their bytes.

A `str` of 40 letters is 89 bytes, and a place in a list 8 more. Here all names but those that are
looked at lie in blocks of bytes, 41 for each. Names are printable: they hold no newline.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, Final

BLOCK: Final = 256
"""Names taken out of their bytes at a time."""


class Roll:
    """Names in a fixed order; the last can be taken off."""

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
        """Take the last name off; IndexError if there is none."""
        text = self._open().pop()
        self._len -= 1
        return text

    def _open(self) -> list[str]:
        if not self._tail:
            self._tail = _names(self._blocks.pop())
        return self._tail

    def remove(self, text: str, key: Callable[[str], Any]) -> bool:
        """Take a name off a roll that is in the order of `key`; say whether it was there."""
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
        """Count the names whose `key`, in the order of which they are, is larger than `limit`."""
        at = bisect_right(self._blocks, limit, key=lambda block: key(_first(block)))
        parts = [_names(self._blocks[at - 1])] if at else []
        whole = sum(block.count(b"\n") + 1 for block in self._blocks[at:])
        parts.append(self._tail)
        return whole + sum(len(part) - bisect_right(part, limit, key=key) for part in parts)


def _names(block: bytes) -> list[str]:
    return block.decode().split("\n")


def _first(block: bytes) -> str:
    return block.partition(b"\n")[0].decode()
