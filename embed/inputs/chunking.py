"""Find where to cut a text into chunks that fit into a model, counted in its own tokens.

A chunk begins and ends at white space, unless one word fills half of it. It repeats the end of the
one before, so that text at a border is also read with its context. Its tokens are counted as in the
chunk alone, because that is what is embedded.

What this module does not know: models, files, and which tokenizer it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

Offsets = list[tuple[int, int]]
"""The range of characters that each token of a text stands for."""
TokenOffsets = Callable[[str], Offsets]

TOKENS_MIN: Final = 16
"""In fewer tokens a single character may not fit."""
CHARACTERS_PER_TOKEN: Final = 8
"""A first guess at how far to look ahead."""
BYTE_ORDER_MARK: Final = "\ufeff"


class Span(NamedTuple):
    """The range of characters of one chunk, and its number of tokens."""

    begin: int
    end: int
    tokens: int


def chunk_spans(text: str, token_offsets: TokenOffsets, size: int, overlap: int) -> Iterator[Span]:
    """Yield the chunks of a text, in order: at most `size` tokens each, about `overlap` repeated.

    Every character that is not blank is in a chunk, except in stretches that give no tokens.
    """
    assert size >= TOKENS_MIN and 0 <= overlap <= size // 2, (size, overlap)
    cutter, begin, reached = _Cutter(text, token_offsets, size), 0, 0
    while (begin := _skip_blanks(text, begin)) < len(text):
        end, offsets = cutter.chunk(begin, reached)
        if end <= reached:
            begin = reached  # the text to repeat fills a chunk by itself: do not repeat it
            continue
        if offsets:
            yield Span(begin, end, len(offsets))
        if _skip_blanks(text, end) == len(text):
            return
        repeated = offsets[len(offsets) - overlap :] if len(offsets) > overlap else []
        begin, reached = _next_begin(text, begin, end, repeated), end


@dataclass(slots=True)
class _Cutter:
    """Find where a chunk ends, tokenizing as little beyond it as possible."""

    text: str
    token_offsets: TokenOffsets
    size: int
    ahead: int = 0

    def chunk(self, begin: int, reached: int) -> tuple[int, Offsets]:
        """Return where the chunk that begins here ends, and the offsets of its tokens.

        If possible it ends after `reached`, the end of the chunk before.
        """
        end, offsets = self._look_ahead(begin)
        while len(offsets) > self.size and end > begin + 1:
            # Repeated where the part alone has more tokens than within the text, as in a cut word.
            end = begin + max(1, min(offsets[self.size][0], end - begin - 1))
            low = max(begin + (end - begin) // 2, reached)
            end = _strip_blanks(self.text, begin, _last_word_end(self.text, low, end))
            offsets = self.token_offsets(self.text[begin:end])
        self.ahead = 5 * (end - begin) // 4
        return end, offsets

    def _look_ahead(self, begin: int) -> tuple[int, Offsets]:
        """Tokenize until there are more tokens than fit into a chunk, or no more text."""
        ahead, rest = self.ahead or CHARACTERS_PER_TOKEN * self.size, len(self.text) - begin
        while True:
            is_all = ahead >= rest
            end = _strip_blanks(self.text, begin, len(self.text)) if is_all else begin + ahead
            offsets = self.token_offsets(self.text[begin:end])
            if len(offsets) > self.size or is_all:
                return end, offsets
            ahead *= 2


def _last_word_end(text: str, low: int, end: int) -> int:
    """Return the last position in (low, end] where a word ends, or `end` if there is none."""
    for at in range(end, low, -1):
        if text[at].isspace() or text[at - 1].isspace():
            return at
    return end


def _next_begin(text: str, begin: int, end: int, repeated: Offsets) -> int:
    """Return where the next chunk begins, so that it repeats about these tokens of this one."""
    first = begin + repeated[0][0] if repeated else end
    for at in range(max(first, begin + 1), end):
        if text[at - 1].isspace() and not text[at].isspace():
            return at
    return first if first > begin else end


def _skip_blanks(text: str, at: int) -> int:
    while at < len(text) and (text[at].isspace() or text[at] == BYTE_ORDER_MARK):
        at += 1
    return at


def _strip_blanks(text: str, begin: int, end: int) -> int:
    while end > begin + 1 and text[end - 1].isspace():
        end -= 1
    return end
