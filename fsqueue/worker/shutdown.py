"""Decide when a worker leaves, and with which exit status: signals, orders, limits.

`Departure` is the record of why a worker leaves; `worker` makes those that are about the work.
`Shutdown` watches everything that makes a worker leave before its work is done.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Final

from fsqueue.errors import ExitStatus, exit_status_of_signal
from fsqueue.pool.layout import Order, order_name
from fsqueue.pool.status import LeaveReason
from fsqueue.slurm.allocation import Allocation
from fsqueue.worker.heartbeat import Heartbeat

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
KILL_WAIT_S: Final = 30.0
"""From SLURM's SIGTERM to its SIGKILL, unless its configuration says otherwise."""


EXIT_STATUS: Final = {
    LeaveReason.ALL_DONE: ExitStatus.DONE,
    LeaveReason.SOME_FAILED: ExitStatus.SOME_FAILED,
    LeaveReason.WORK_REMAINS: ExitStatus.WORK_REMAINS,
    LeaveReason.OUT_OF_TIME: ExitStatus.DRAINED,
    LeaveReason.ORDER: ExitStatus.DRAINED,
    LeaveReason.TIME_LIMIT: ExitStatus.DRAINED,
    LeaveReason.ALLOCATION_ENDS: ExitStatus.DRAINED,
    LeaveReason.CLAIMS_MAX: ExitStatus.DRAINED,
    LeaveReason.LEASE_LOST: ExitStatus.ERROR,
    LeaveReason.BROKEN: ExitStatus.ERROR,
    LeaveReason.FAILURES: ExitStatus.ERROR,
}


@dataclass(frozen=True, slots=True)
class Departure:
    """Why a worker leaves, in a word and in a sentence."""

    reason: LeaveReason
    message: str = ""
    signal: int = 0
    """The signal received, if that is the reason."""

    @property
    def exit_status(self) -> int:
        if self.reason is LeaveReason.SIGNAL:
            return exit_status_of_signal(self.signal)
        return EXIT_STATUS[self.reason]


class StopNow(BaseException):
    """The second signal: leave the handler at once."""


@dataclass(slots=True)
class Shutdown:
    """What makes one worker leave before its work is done.

    In a SLURM job several signals do not mean that a person is impatient: a preempted job gets
    SIGUSR1 and SIGTERM within 10 ms. There the first signal asks the handler to stop, and a timer
    interrupts it halfway between SIGTERM and SIGKILL.
    """

    beat: Heartbeat
    claims_max: int | None = None
    time_limit_s: float | None = None
    clock: Callable[[], float] = time.monotonic
    signal: int = 0
    """The signal received last, 0 before the first."""
    allocation: Allocation | None = None
    _started: float = field(init=False)
    _previous: list[tuple[int, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._started = self.clock()

    # ---- signals ----

    def install_handlers(self) -> None:
        """Take over the process's signals: the first asks, the second raises StopNow."""
        handler = self._on_signal_in_slurm if self._in_slurm else self._on_signal
        self._previous = [(number, signal.signal(number, handler)) for number in SIGNALS]

    def restore_handlers(self) -> None:
        """Restore the signal handlers that `install_handlers` replaced."""
        for number, handler in self._previous:
            signal.signal(number, handler)
        self._previous = []

    def ignore_signals(self) -> None:
        """Ignore further signals, of those taken over, while the worker leaves."""
        if self._in_slurm:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, _ in self._previous:
            signal.signal(number, signal.SIG_IGN)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signal:
            raise StopNow
        self.signal = number

    def _on_signal_in_slurm(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            return self._on_signal(number, frame)
        if number == signal.SIGTERM and self.signal != number:
            signal.signal(signal.SIGALRM, self._on_alarm)
            signal.setitimer(signal.ITIMER_REAL, KILL_WAIT_S / 2)
        if number == signal.SIGTERM or not self.signal:
            self.signal = number

    def _on_alarm(self, number: int, frame: FrameType | None) -> None:
        raise StopNow

    def sleep(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        """Sleep, but wake for a signal, a lost lease, or when `until` returns True."""
        end = self.clock() + seconds
        while (
            (left := end - self.clock()) > 0 and not self.signal and self.beat.lost is None
        ) and not until():
            self.beat.step()
            time.sleep(min(left, 0.2))

    # ---- decisions ----

    def interrupts_claim(self) -> bool:
        """Return whether the running claim should be put back rather than finished."""
        return bool(self.signal) or self._is_ordered(Order.STOP) or self._is_time_up()

    def departure(self, taken: int) -> Departure | None:
        """Return why to take nothing more after `taken` claims, None to go on."""
        if self.beat.lost is not None:
            return Departure(LeaveReason.LEASE_LOST, str(self.beat.lost))
        if self.signal:
            return self.departure_by_signal()
        for order in (Order.DRAIN, Order.STOP) if self.beat.orders else ():
            if self._is_ordered(order):
                return Departure(
                    LeaveReason.ORDER,
                    f"told to {order} (control/{order}); undo it with: fsqueue drain --undo",
                )
        if self._allocation_is_over():
            return Departure(LeaveReason.ALLOCATION_ENDS, "its allocation ends")
        if self._is_time_up():
            return Departure(LeaveReason.TIME_LIMIT, "its time limit is reached")
        if self.claims_max is not None and taken >= self.claims_max:
            return Departure(
                LeaveReason.CLAIMS_MAX, f"it reached its limit of {self.claims_max} claims"
            )
        return None

    def departure_by_signal(self) -> Departure:
        """Return the departure for the signal received."""
        name = signal.Signals(self.signal).name
        return Departure(LeaveReason.SIGNAL, f"stopped by {name}", signal=self.signal)

    @property
    def paused(self) -> bool:
        """Whether this worker is ordered to take nothing more for now."""
        return self._is_ordered(Order.PAUSE)

    def _is_ordered(self, order: Order) -> bool:
        orders = self.beat.orders  # nearly always empty, and asked several times per claim
        return bool(orders) and not orders.isdisjoint(
            (order_name(order), order_name(order, self.beat.status.worker_id))
        )

    def time_left_s(self) -> float:
        """Return how long it may still work; infinite without a limit."""
        if self.time_limit_s is None and self.allocation is None:
            return math.inf
        left_s = math.inf
        if self.time_limit_s is not None:
            left_s = self._started + self.time_limit_s - self.clock()
        if self.allocation is not None:
            left_s = min(left_s, self.allocation.left_s())
        return max(0.0, left_s)

    @property
    def is_for_allocation_end(self) -> bool:
        """Whether it leaves because its SLURM allocation ends, and not for the work's sake."""
        return self._in_slurm and (
            self.signal == signal.SIGUSR1 or not self.signal and self._allocation_is_over()
        )

    @property
    def _in_slurm(self) -> bool:
        return self.allocation is not None and self.allocation.job is not None

    def _allocation_is_over(self) -> bool:
        return self.allocation is not None and self.allocation.left_s() <= 0

    def _is_time_up(self) -> bool:
        return self.time_left_s() <= 0
