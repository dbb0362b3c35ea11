"""Cut a text into chunks that a model takes whole: so many tokens at most, by its own tokenizer.

A chunk begins and ends at white space, unless one word fills half of it. It repeats the end of the
one before, so that what stands on a border is read in company once. Its tokens are counted as the
chunk alone is read, because that is what is embedded.

What this module does not know: models, files, and which tokenizer it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

Places = Callable[[str], list[tuple[int, int]]]
"""Returns of each token of a text the characters that it stands for, from and to."""

TOKENS_MIN: Final = 16
"""Below this a single character may not fit."""
LETTERS: Final = 8
"""Characters of a token, at first, for how far to look ahead."""
MARK: Final = "\ufeff"
"""A byte-order mark is no text."""


class Span(NamedTuple):
    """The characters of one chunk, from and to, and how many tokens they are."""

    begin: int
    end: int
    tokens: int


def spans(text: str, places: Places, size: int, overlap: int) -> Iterator[Span]:
    """Yield the chunks of a text, in order: at most `size` tokens each, about `overlap` repeated.

    Every character that is not blank is in one, but where there is none that a token stands for.
    """
    assert size >= TOKENS_MIN and 0 <= overlap <= size // 2, (size, overlap)
    cutter, begin, reached = _Cutter(text, places, size), 0, 0
    while (begin := _skipped(text, begin)) < len(text):
        end, found = cutter.chunk(begin, reached)
        if end <= reached:
            begin = reached  # read alone, what was to be repeated fills a chunk: leave it out
            continue
        if found:
            yield Span(begin, end, len(found))
        if _skipped(text, end) == len(text):
            return
        last = found[len(found) - overlap :] if len(found) > overlap else []
        begin, reached = _repeated(text, begin, end, last), end


@dataclass(slots=True)
class _Cutter:
    """Find where a chunk ends, reading as little beyond it as can be."""

    text: str
    places: Places
    size: int
    ahead: int = 0

    def chunk(self, begin: int, reached: int) -> tuple[int, list[tuple[int, int]]]:
        """Return where the chunk that begins here ends, and the places of its tokens.

        It ends after `reached`, the end of the one before, if it can.
        """
        end, found = self._most(begin)
        while len(found) > self.size and end > begin + 1:
            # Once more if it is more tokens alone than in company, as where a word is cut.
            end = begin + max(1, min(found[self.size][0], end - begin - 1))
            low = max(begin + (end - begin) // 2, reached)
            end = _stripped(self.text, begin, _between_words(self.text, low, end))
            found = self.places(self.text[begin:end])
        self.ahead = 5 * (end - begin) // 4
        return end, found

    def _most(self, begin: int) -> tuple[int, list[tuple[int, int]]]:
        """Look ahead until there are more tokens than a chunk has, or no more text."""
        ahead, rest = self.ahead or LETTERS * self.size, len(self.text) - begin
        while True:
            end = begin + ahead if ahead < rest else _stripped(self.text, begin, len(self.text))
            found = self.places(self.text[begin:end])
            if len(found) > self.size or ahead >= rest:
                return end, found
            ahead *= 2


def _between_words(text: str, low: int, end: int) -> int:
    """Return the last place up to `end`, and after `low`, where a word ends; `end` without one."""
    for place in range(end, low, -1):
        if text[place].isspace() or text[place - 1].isspace():
            return place
    return end


def _repeated(text: str, begin: int, end: int, last: list[tuple[int, int]]) -> int:
    """Return where the next chunk begins, which repeats about the `last` tokens of this one."""
    first = begin + last[0][0] if last else end
    for place in range(max(first, begin + 1), end):
        if text[place - 1].isspace() and not text[place].isspace():
            return place
    return first if first > begin else end


def _skipped(text: str, place: int) -> int:
    while place < len(text) and (text[place].isspace() or text[place] == MARK):
        place += 1
    return place


def _stripped(text: str, begin: int, end: int) -> int:
    while end > begin + 1 and text[end - 1].isspace():
        end -= 1
    return end
