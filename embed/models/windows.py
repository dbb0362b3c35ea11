"""Divide a sequence into windows of letters, for models whose longest input is counted in letters.

What this module does not know: which token a letter is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sized


class LetterWindows:
    """The part of a tokenizer that reads windows of letters; subclasses implement `read`."""

    edges = (1, 1)
    """How many tokens the encoder adds before and after a sequence."""
    prefix_tokens = left_out = 0

    def read(self, letters: bytes) -> tuple[Sized, int]:
        """Return the token ids, without begin and end, and how many letters are unknown."""
        raise NotImplementedError

    def windows(self, letters: bytes, most: int) -> Iterator[tuple[Sized, int, float]]:
        """Yield windows of at most `most` letters: ids, how many are unknown, how many letters."""
        for start in range(0, len(letters), most):
            part = letters[start : start + most]
            yield *self.read(part), len(part)
