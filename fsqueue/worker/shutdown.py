"""Know when a worker should leave, and with which exit status: signals, orders, limits."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Final

from fsqueue.slurm.allocation import Allocation
from fsqueue.worker.heartbeat import Heartbeat

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
DRAINED: Final = 75
KILL_WAIT_S: Final = 30.0
"""From SLURM's SIGTERM to its SIGKILL, unless its configuration says otherwise."""


class StopNow(BaseException):
    """The second signal: leave the handler at once."""


@dataclass(slots=True)
class Shutdown:
    """The reasons for which one worker leaves before its work is done.

    In a SLURM job several signals are not somebody's impatience: a preempted job gets SIGUSR1 and
    SIGTERM within 10 ms. There the handler is asked to stop by the first, and is interrupted half
    way between SIGTERM and SIGKILL.
    """

    beat: Heartbeat
    claims_max: int | None = None
    time_limit_s: float | None = None
    clock: Callable[[], float] = time.monotonic
    signal: int = 0
    allocation: Allocation | None = None
    _begun: float = field(init=False)
    _before: list[tuple[int, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._begun = self.clock()

    def listen(self) -> None:
        """Take over the process's signals: the first asks, the second raises StopNow."""
        handler = self._heard_in_slurm if self._in_slurm else self._heard
        self._before = [(number, signal.signal(number, handler)) for number in SIGNALS]

    def restore(self) -> None:
        """Give the signals back to whoever had them before `listen`."""
        for number, handler in self._before:
            signal.signal(number, handler)
        self._before = []

    def ignore(self) -> None:
        """Let no further signal disturb the goodbye, of those that were taken over."""
        if self._in_slurm:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, _ in self._before:
            signal.signal(number, signal.SIG_IGN)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if self.signal:
            raise StopNow
        self.signal = number

    def _heard_in_slurm(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            return self._heard(number, frame)
        if number == signal.SIGTERM and self.signal != number:
            signal.signal(signal.SIGALRM, self._rung)
            signal.setitimer(signal.ITIMER_REAL, KILL_WAIT_S / 2)
        if number == signal.SIGTERM or not self.signal:
            self.signal = number

    def _rung(self, number: int, frame: FrameType | None) -> None:
        raise StopNow

    def nap(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        """Sleep, but wake for a signal, for being declared dead, or when `until` says so."""
        end = self.clock() + seconds
        while (
            (left := end - self.clock()) > 0 and not self.signal and not self.beat.lost
        ) and not until():
            time.sleep(min(left, 0.2))

    def at_once(self) -> bool:
        """Say whether the claim that runs is to be put back, not finished."""
        return bool(self.signal) or self._told("stop") or self._late()

    def why(self, taken: int) -> tuple[int, str] | None:
        """Return the exit status and the reason to take nothing more, if there is one."""
        if self.beat.lost:
            return 1, self.beat.lost
        if self.signal:
            return self.signal_status, f"stopped by {signal.Signals(self.signal).name}"
        for order in ("drain", "stop") if self.beat.orders else ():
            if self._told(order):
                reason = f"told to {order} (control/{order}); fsqueue drain --undo takes it back"
                return DRAINED, reason
        if self._late():
            return DRAINED, f"its {'allocation ends' if self._ends() else 'time limit is reached'}"
        if self.claims_max is not None and taken >= self.claims_max:
            return DRAINED, f"it has taken its {self.claims_max} claims"
        return None

    @property
    def signal_status(self) -> int:
        """The exit status of the signal heard: USR1 is the scheduler's word for drain."""
        return DRAINED if self.signal == signal.SIGUSR1 else 128 + self.signal

    @property
    def paused(self) -> bool:
        """Whether a person wants nothing more to be taken for now."""
        return self._told("pause")

    def _told(self, order: str) -> bool:
        orders = self.beat.orders  # nearly always none: this is asked several times a claim
        return bool(orders) and not orders.isdisjoint(
            (order, f"{order}@{self.beat.status.worker_id}")
        )

    def time_left_s(self) -> float:
        """Return for how long it may still work, infinite if nothing limits it."""
        if self.time_limit_s is None and self.allocation is None:
            return math.inf
        left_s = math.inf
        if self.time_limit_s is not None:
            left_s = self._begun + self.time_limit_s - self.clock()
        if self.allocation is not None:
            left_s = min(left_s, self.allocation.left_s())
        return max(0.0, left_s)

    @property
    def for_slurm(self) -> bool:
        """Whether it leaves for the sake of the allocation's end: more time would bring more."""
        return self._in_slurm and (
            self.signal == signal.SIGUSR1 or not self.signal and self._ends()
        )

    @property
    def _in_slurm(self) -> bool:
        return self.allocation is not None and self.allocation.job is not None

    def _ends(self) -> bool:
        return self.allocation is not None and self.allocation.left_s() <= 0

    def _late(self) -> bool:
        return self.time_left_s() <= 0
