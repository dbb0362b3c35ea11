"""Say how a worker is getting on, where the process that renews its lease can read it.

The words lie in memory that both share: plain numbers, each written by one side alone and read
whole. So nothing here waits or takes a lock, and all of it may be called from a signal handler. The
clock is the host's monotonic one, the same for all its processes.

    the worker says      it steps; it is in a handler, since when, with which claim; it leaves; stop
    its guardian says    the beat it has reached; that the lease was lost, and why; that it ticks;
                         for how long the worker stood still (SIGSTOP, scontrol suspend, a freezer)
"""

from __future__ import annotations

import math
import mmap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum, auto
from typing import Final

from fsqueue.pool.names import LeaseName

GRACE_S: Final = 10.0
"""How long after its time was up a handler has to end by itself."""
AWAY_S: Final = 5.0
"""What comes this late was stopped: a guardian most likely together with its worker."""
TEXT_MAX: Final = 512


class Word(IntEnum):
    """The numbers in shared memory."""

    STEPPED = 0
    IN_HANDLER = auto()
    DEADLINE = auto()
    TIMEOUT = auto()
    ADDRESSED = auto()
    LEAVING = auto()
    STOP = auto()
    TICKED = auto()
    STOPPED_S = auto()
    BEAT = auto()
    BEAT_LEAVES = auto()
    LOST = auto()
    MISSED = auto()
    OPERATIONS = auto()


CLAIM: Final = 8 * len(Word)
REASON: Final = CLAIM + TEXT_MAX
SIZE: Final = REASON + TEXT_MAX


class Progress:
    """What a worker and the process that renews its lease tell each other."""

    def __init__(
        self, memory: mmap.mmap | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`memory`: shared with another process; None: it is for this process's own threads."""
        self._memory = mmap.mmap(-1, SIZE) if memory is None else memory
        self._words = memoryview(self._memory)[:CLAIM].cast("d")
        self._clock = clock

    # ---- what the worker says ----

    def step(self) -> None:
        """Say that the main thread is getting on."""
        self._words[Word.STEPPED] = self._clock()

    @contextmanager
    def handling(
        self,
        timeout_s: float = 0.0,
        claim: str = "",
        *,
        addressed: bool = False,
        grace_s: float = GRACE_S,
    ) -> Iterator[None]:
        """Say that a handler runs, which may be silent for as long as it likes.

        Unless `timeout_s` is given (0: none): what runs longer than that, and the grace, is ended
        with its worker. `claim` is the name it has in running/, or, if `addressed`, in the inbox.
        One inside another replaces it for that time.
        """
        words = self._words
        before = [words[word] for word in (Word.IN_HANDLER, Word.TIMEOUT, Word.ADDRESSED)]
        deadline, outer = words[Word.DEADLINE], self.claim
        words[Word.DEADLINE] = math.inf  # never that of one claim with the name of another
        self._write(CLAIM, claim)
        words[Word.TIMEOUT], words[Word.ADDRESSED] = timeout_s, addressed
        if timeout_s > 0:
            words[Word.DEADLINE] = self.running_s + timeout_s + grace_s
        words[Word.IN_HANDLER] = 1.0
        try:
            yield
        finally:
            self.step()
            words[Word.DEADLINE] = math.inf
            self._write(CLAIM, outer)
            words[Word.IN_HANDLER], words[Word.TIMEOUT], words[Word.ADDRESSED] = before
            words[Word.DEADLINE] = deadline

    def announce_leaving(self) -> None:
        """Say that this worker leaves on purpose."""
        self._words[Word.LEAVING] = 1.0

    def ask_to_stop(self) -> None:
        """Ask the process that renews the lease to end."""
        self._words[Word.STOP] = 1.0

    # ---- what it is asked ----

    @property
    def stepped(self) -> float:
        """When the main thread got on last; 0 if it never said so: then it is not watched."""
        return self._words[Word.STEPPED]

    @property
    def in_handler(self) -> bool:
        return self._words[Word.IN_HANDLER] != 0.0

    @property
    def leaving(self) -> bool:
        """Whether `announce_leaving` was called."""
        return self._words[Word.LEAVING] != 0.0

    @property
    def stops(self) -> bool:
        """Whether `ask_to_stop` was called."""
        return self._words[Word.STOP] != 0.0

    @property
    def overdue(self) -> bool:
        """Whether a handler runs whose time, and grace, is up."""
        return (
            self.in_handler and self.timeout_s > 0 and self.running_s > self._words[Word.DEADLINE]
        )

    @property
    def running_s(self) -> float:
        """The monotonic clock, but standing still while the worker was stopped."""
        return self._clock() - self._words[Word.STOPPED_S]

    @property
    def timeout_s(self) -> float:
        return self._words[Word.TIMEOUT]

    @property
    def claim(self) -> str:
        """The name of the claim that the handler runs."""
        return self._read(CLAIM)

    @property
    def addressed(self) -> bool:
        """Whether that claim is in the inbox."""
        return self._words[Word.ADDRESSED] != 0.0

    # ---- what the guardian says ----

    def tick(self, operations: int) -> None:
        """Say that the guardian is at work, and what it has cost the file server."""
        self._words[Word.OPERATIONS] = operations
        self._words[Word.TICKED] = self._clock()

    def note_stopped(self, seconds: float) -> None:
        """Say that the worker was stopped for so long."""
        self._words[Word.STOPPED_S] += seconds

    def reach(self, name: LeaseName) -> None:
        """Say which beat the lease has reached."""
        self._words[Word.BEAT_LEAVES] = name.leaving
        self._words[Word.BEAT] = name.beat or 0
        self._words[Word.MISSED] = 0

    def miss(self, reason: str) -> None:
        """Say that the lease could not be renewed this time."""
        self._write(REASON, reason)
        self._words[Word.MISSED] += 1

    def lose(self, reason: str) -> None:
        """Say that the lease was lost."""
        self._write(REASON, reason)
        self._words[Word.LOST] = 1.0

    @property
    def ticked(self) -> float:
        """When the guardian ticked last; 0 if it has not begun."""
        return self._words[Word.TICKED]

    @property
    def operations(self) -> int:
        return int(self._words[Word.OPERATIONS])

    @property
    def missed(self) -> int:
        """How many renewals in a row could not be made."""
        return int(self._words[Word.MISSED])

    @property
    def lost(self) -> bool:
        return self._words[Word.LOST] != 0.0

    @property
    def reason(self) -> str:
        """Why the lease was lost, or could not be renewed."""
        return self._read(REASON)

    def beat_of(self, worker: str) -> LeaseName:
        """Return the name of the worker's lease, as far as the guardian got to say it."""
        leaving = self._words[Word.BEAT_LEAVES] != 0.0
        return LeaseName(worker, beat=int(self._words[Word.BEAT]), leaving=leaving)

    # ---- texts ----

    def _write(self, at: int, text: str) -> None:
        data = text.encode(errors="replace")[: TEXT_MAX - 1]
        self._memory[at : at + len(data) + 1] = data + b"\0"

    def _read(self, at: int) -> str:
        return bytes(self._memory[at : at + TEXT_MAX]).partition(b"\0")[0].decode(errors="replace")


class Silence:
    """For how long a worker's main thread has made no progress outside a handler. R10.

    Between two looks at most a quarter of a lease is counted, however much later the second came:
    what watches may itself have been stopped, or stuck in the same file system.
    """

    def __init__(
        self, progress: Progress, lease_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._progress = progress
        self._longest_s = lease_s / 4
        self._clock = clock
        self._looked = clock()
        self._stepped = progress.stepped
        self._silent_s = 0.0

    def look(self, *, excused: bool = False) -> float:
        """Return for how long it has been silent; `excused`: the time since the last look is not
        counted.
        """
        now, stepped = self._clock(), self._progress.stepped
        passed_s = 0.0 if excused else min(now - self._looked, self._longest_s)
        if not stepped or stepped != self._stepped or self._progress.in_handler:
            self._silent_s = 0.0
        else:
            self._silent_s += passed_s
        self._looked, self._stepped = now, stepped
        return self._silent_s
