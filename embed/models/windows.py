"""Cut a sequence by its letters, where a model's longest input is counted in them.

What this module does not know: which token a letter is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sized


class ByLetters:
    """Reads windows of letters; what a window's letters mean, a subclass says."""

    edges = (1, 1)
    """How many tokens the encoder puts before and after a sequence."""

    def read(self, letters: bytes) -> tuple[Sized, int]:
        """Return the token ids, without begin and end, and how many letters are unknown."""
        raise NotImplementedError

    def windows(self, letters: bytes, most: int) -> Iterator[tuple[Sized, int, float]]:
        """Yield windows of at most `most` letters: ids, how many are unknown, how many letters."""
        for start in range(0, len(letters), most):
            part = letters[start : start + most]
            yield *self.read(part), len(part)
