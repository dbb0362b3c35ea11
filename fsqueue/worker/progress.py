"""Say how a worker is getting on, where the process that renews its lease can read it.

The words lie in memory that both share: plain numbers, each written by one side alone and read
whole. So nothing here waits, takes a lock or allocates, and all of it may be called from a signal
handler. The clock is the host's monotonic one, the same for all its processes.
"""

from __future__ import annotations

import math
import mmap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

WORDS: Final = 16
TEXT_MAX: Final = 256
SIZE: Final = 8 * WORDS + TEXT_MAX
STEPPED, IN_HANDLER, DEADLINE, ADDRESSED, LEAVING = range(5)


class Progress:
    """What a worker's main thread says: it steps, it is in a handler, it leaves."""

    def __init__(
        self, memory: mmap.mmap | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._memory = mmap.mmap(-1, SIZE) if memory is None else memory
        self._words = memoryview(self._memory)[: 8 * WORDS].cast("d")
        self._clock = clock

    def step(self) -> None:
        """Say that the main thread is getting on."""
        self._words[STEPPED] = self._clock()

    @contextmanager
    def handling(
        self, timeout_s: float = 0.0, claim: str = "", *, addressed: bool = False
    ) -> Iterator[None]:
        """Say that a handler runs, which may be silent for as long as it likes.

        Unless `timeout_s` is given (0: none): what runs longer than that, and some grace, is ended
        with its worker. `claim` is the name it has in running/, or, if `addressed`, in the inbox.
        """
        text = claim.encode("ascii")[: TEXT_MAX - 1]
        self._memory[8 * WORDS : 8 * WORDS + len(text) + 1] = text + b"\0"
        self._words[ADDRESSED] = addressed
        self._words[DEADLINE] = self._clock() + timeout_s if timeout_s > 0 else math.inf
        self._words[IN_HANDLER] = 1.0
        try:
            yield
        finally:
            self.step()
            self._words[IN_HANDLER] = 0.0

    def announce_leaving(self) -> None:
        """Say that this worker leaves on purpose."""
        self._words[LEAVING] = 1.0

    @property
    def leaving(self) -> bool:
        """Whether `announce_leaving` was called."""
        return self._words[LEAVING] != 0.0
