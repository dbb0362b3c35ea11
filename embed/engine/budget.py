"""Choose how many tokens a launch has: as many as make the device faster, and fit into its memory.

A plan's batches are small, because they are what is saved and counted; and they are the same
wherever a claim runs. On a GPU, consecutive ones share a launch. How many is found while working:
the tokens are doubled until that gains less than GAIN, or would use more than MEMORY_SHARE. The
next process may begin with what was found (`remembered_budget.py`).

What this module does not know: which device it has, and what a batch is but its tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, Protocol

from embed.engine.batching import Tokenized

GAIN: Final = 1.03
"""Doubling must make the device so much faster."""
MEMORY_SHARE: Final = 0.8
"""The memory that may be in use, beside what is needed for a moment."""
TOKENS_MAX: Final = 1 << 18
"""Sequences are sorted by length in groups of this many tokens; beyond, lengths are mixed."""
LAUNCHES: Final = 6
"""How many launches of a size are timed."""
FULL: Final = 0.75
"""A launch is timed if it has this share of the tokens that it may have."""

Batch = Sequence[Tokenized]


class Memory(Protocol):
    """What a device says about its memory."""

    ahead: int

    def used_share(self) -> float | None:
        """Return the largest share in use since the last call."""


class Budget:
    """A fixed one: every batch is a launch of its own."""

    def groups(self, batches: Iterable[Batch]) -> Iterator[list[Batch]]:
        """Yield the batches that share a launch."""
        for batch in batches:
            yield [batch]

    def note(self, tokens: int) -> None:
        """Note that the rows of a launch of so many tokens have come back."""

    def limit(self, tokens: int) -> None:
        """Note that memory ran out with more tokens than these."""


class FoundBudget(Budget):
    """One that grows while that pays."""

    def __init__(
        self,
        device: Memory,
        tokens: int,
        clock: Callable[[], float] = time.perf_counter,
        *,
        known: int | None = None,
        found: Callable[[int], None] | None = None,
    ) -> None:
        """`tokens` are those of a planned batch, with which it begins, unless more are `known`.

        What it finds is given to `found`; what an out-of-memory forced is not.
        """
        self.tokens = known or tokens
        """How many a launch may have."""
        self.settled = known is not None
        """Whether a larger one was found not to pay."""
        self._device, self._clock = device, clock
        device.used_share()
        self._weights_share = device.used_share() or 0.0
        self._rate = 0.0
        self._found = found
        self._restart()

    def _restart(self) -> None:
        self._to_skip = self._device.ahead  # launches of another size are still in flight
        self._timed_tokens, self._timed = 0, 0
        self._seconds = 0.0
        self._last: float | None = None

    def groups(self, batches: Iterable[Batch]) -> Iterator[list[Batch]]:
        """Yield consecutive batches with at most `tokens` tokens together, or one batch."""
        self._restart()
        group: list[Batch] = []
        tokens = 0
        for batch in batches:
            size = sum(one.tokens for one in batch)
            if group and tokens + size > self.tokens:
                yield group
                group, tokens = [], 0
            group.append(batch)
            tokens += size
        if group:
            yield group

    def note(self, tokens: int) -> None:
        """Time a launch; after enough of them, decide whether to double."""
        if self.settled:
            return
        now = self._clock()
        begun, self._last = self._last, now
        if self._to_skip:
            self._to_skip -= 1
            return
        if begun is None or tokens < FULL * self.tokens:
            return
        self._timed += 1
        self._timed_tokens += tokens
        self._seconds += now - begun
        if self._timed >= LAUNCHES:
            self._decide()

    def _decide(self) -> None:
        rate = self._timed_tokens / max(self._seconds, 1e-9)
        if rate < GAIN * self._rate:
            self.tokens //= 2  # the size before was as fast
            self.settled = True
        elif self.tokens * 2 > TOKENS_MAX or not self._has_room():
            self.settled = True
        else:
            self._rate = rate
            self.tokens *= 2
        if self.settled and self._found is not None:
            self._found(self.tokens)
        self._restart()

    def _has_room(self) -> bool:
        """Estimate whether twice the tokens fit: all that is not weights will double."""
        used = self._device.used_share()
        if used is None:
            return True
        return 2 * used - self._weights_share <= MEMORY_SHARE

    def limit(self, tokens: int) -> None:
        """Stay below what ran out of memory."""
        self.tokens = min(self.tokens, max(1, tokens))
        self.settled = True
