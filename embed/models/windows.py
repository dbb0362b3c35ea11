"""Divide a sequence that is longer than a model's longest input into windows.

Windows are of equal length, within one letter, so that none is a stump whose letters are read
without their context; or they overlap, and each is as long as possible. Plans made before there
were such windows have full ones and a rest.

What this module does not know: which token a letter is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from itertools import islice
from typing import Any

Span = tuple[int, int, int, int]


@dataclass(
    slots=True
)  # not frozen: there is one for each sequence, and that would take 1.0 us more
class Window:
    """One window of a sequence."""

    ids: Sized
    """Its token ids, without begin and end."""
    unknown: int
    """How many of its letters, or tokens, are unknown."""
    letters: float
    """About how many letters it stands for."""
    first: int = 0
    """Which of its tokens are nearer to its middle than to that of any other window: from here"""
    stop: int | None = None
    """... up to here. Together these are every token of the sequence, once."""


@dataclass(frozen=True, slots=True)
class Windows:
    """How sequences are divided."""

    most: int
    """How many letters, or tokens with begin and end, a window has at most."""
    equal: bool = False
    overlap: int = 0

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Windows:
        """Return how the plan with these options divides sequences.

        What is truncated is the first window: the longest one, whatever follows.
        """
        equal = options["long"] == "window" and options.get("windows") == "equal"
        return cls(options["max_residues"], equal, options.get("overlap", 0) if equal else 0)

    def kept(self, count: int, room: int, *, first_only: bool) -> tuple[Sequence[Span], bool]:
        """Return the spans to read, and whether there are others."""
        if count <= room:
            return [(0, count, 0, count)] if count else [], False
        spans = list(islice(self.spans(count, room), 2 if first_only else None))
        return (spans[:1], True) if first_only else (spans, False)

    def spans(self, count: int, room: int) -> Iterator[Span]:
        """Yield (begin, end, first, stop) of each window, if `room` of `count` fit into one.

        The numbers `first` and `stop`, relative to `begin`, divide what overlaps in its middle.
        """
        if not self.equal or count <= room:
            for begin in range(0, count, room):
                end = min(begin + room, count)
                yield begin, end, 0, end - begin
            return
        edges = self._edges(count, room)
        pairs = zip(edges, edges[1:], strict=False)
        cuts = [0, *((end + begin + 1) // 2 for (_, end), (begin, _) in pairs), count]
        for (begin, end), first, stop in zip(edges, cuts, cuts[1:], strict=False):
            yield begin, end, first - begin, stop - begin

    def _edges(self, count: int, room: int) -> list[tuple[int, int]]:
        if not self.overlap:
            windows = -(-count // room)
            cuts = [count * n // windows for n in range(windows + 1)]
            return list(zip(cuts, cuts[1:], strict=False))
        windows = 1 + -(-(count - room) // (room - self.overlap))
        begins = [(count - room) * n // (windows - 1) for n in range(windows)]
        return [(begin, begin + room) for begin in begins]


class LetterWindows:
    """The part of a tokenizer that reads windows of letters; subclasses implement `read`.

    One that is faster with many sequences at once implements `read_many`, too.
    """

    edges = (1, 1)
    """How many tokens the encoder adds before and after a sequence."""
    prefix_tokens = left_out = 0
    uninformative = b""
    """Letters that stand for any other, in both cases."""

    def read(self, letters: bytes) -> tuple[Sized, int]:
        """Return the token ids, without begin and end, and how many letters are unknown."""
        raise NotImplementedError

    def count_unknown(self, letters: bytes) -> int | None:
        """Return how many letters are unknown; None if that takes reading them."""
        raise NotImplementedError

    def read_many(self, sequences: Sequence[bytes]) -> Iterable[tuple[Sized, int]]:
        """Yield what `read` returns of each."""
        return map(self.read, sequences)

    def windows(
        self, sequences: Sequence[bytes], how: Windows, *, first_only: bool
    ) -> Iterator[tuple[list[Window], bool]]:
        """Yield the windows of each sequence, none if it is empty; with `first_only` the first one,
        and whether there are others."""
        kept = [how.kept(len(each), how.most, first_only=first_only) for each in sequences]
        parts = [
            letters[begin:end]  # the same object, if it is all
            for letters, (spans, _) in zip(sequences, kept, strict=True)
            for begin, end, _, _ in spans
        ]
        read = iter(self.read_many(parts))
        for spans, has_more in kept:
            windows = []
            for begin, end, first, stop in spans:
                ids, unknown = next(read)
                windows.append(Window(ids, unknown, end - begin, first, stop))
            yield windows, has_more
