"""Decide when a worker leaves, and with which exit status: signals, orders, limits.

`Departure` is the record of why a worker leaves; `worker` makes those that are about the work.
`Shutdown` watches everything that makes a worker leave before its work is done.

R5  A worker is interrupted only while a handler runs, and only once: by the second signal, by the
    end of its allocation, or because a claim ran too long (time in which the worker was stopped is
    not counted). Everything else it does, and above all putting its claim back and retiring its
    lease, runs to its end however many signals arrive.
R6  A closed terminal (SIGHUP) is a request to leave, like SIGTERM, unless the worker was started
    to survive it (nohup). SIGUSR2, with which Grid Engine warns, is one like SIGUSR1.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Final

from fsqueue.errors import ExitStatus, exit_status_of_signal
from fsqueue.pool.layout import Order, order_name
from fsqueue.records.status import LeaveReason
from fsqueue.slurm.allocation import Allocation
from fsqueue.worker.attempts.verdicts import Cause
from fsqueue.worker.liveness.heartbeat import Heartbeat
from fsqueue.worker.liveness.progress import AWAY_S
from fsqueue.worker.signals import SIGNALS, TIME_SIGNALS

KILL_WAIT_S: Final = 30.0
"""From SLURM's SIGTERM to its SIGKILL, unless its configuration says otherwise."""


ASK_S: Final = 2.0
"""How long a guardian has, once woken, to say for how long its worker was stopped."""


EXIT_STATUS: Final = {
    LeaveReason.ALL_DONE: ExitStatus.DONE,
    LeaveReason.SOME_FAILED: ExitStatus.SOME_FAILED,
    LeaveReason.CLAIMS_MISSING: ExitStatus.ERROR,
    LeaveReason.WORK_REMAINS: ExitStatus.WORK_REMAINS,
    LeaveReason.OTHERS_RUN: ExitStatus.WORK_REMAINS,
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
    """The second signal, or the end of the allocation: leave the handler at once."""


class TookTooLong(BaseException):
    """A claim ran longer than its plan's --timeout. Not an Exception: a handler might catch it."""


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
    _in_handler: bool = False
    _stop_at: float = math.inf
    _claim_ends_at: float = math.inf
    """By the clock that stands still while the worker is stopped."""
    _asked_guardian: bool = False

    def __post_init__(self) -> None:
        self._started = self.clock()

    # ---- signals ----

    def install_handlers(self) -> None:
        """Take over the process's signals: the first asks, the second raises StopNow."""
        handler = self._on_signal_in_slurm if self._in_slurm else self._on_signal
        hang_up = signal.getsignal(signal.SIGHUP) != signal.SIG_IGN  # R6: else it is under nohup
        taken = [number for number in SIGNALS if hang_up or number != signal.SIGHUP]
        self._previous = [(number, signal.signal(number, handler)) for number in taken]
        self._previous.append((signal.SIGALRM, signal.signal(signal.SIGALRM, self._on_alarm)))

    def restore_handlers(self) -> None:
        """Restore the signal handlers that `install_handlers` replaced."""
        for number, handler in self._previous:
            signal.signal(number, handler)
        self._previous = []

    def ignore_signals(self) -> None:
        """Ignore further signals, of those taken over, while the worker leaves."""
        if self._previous:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, _ in self._previous:
            # Not SIG_IGN: Python reports a signal that arrived just before as an error.
            signal.signal(number, lambda number, frame: None)

    @contextmanager
    def interruptible(self, timeout_s: float = 0.0) -> Iterator[None]:
        """Let a handler be interrupted inside the block: by StopNow or TookTooLong, once (R5).

        `timeout_s`: raise TookTooLong after that long; 0: never.
        """
        running_s = self.beat.progress.running_s
        self._claim_ends_at = running_s + timeout_s if timeout_s > 0 else math.inf
        self._asked_guardian = False
        self._in_handler = True
        try:
            self._set_alarm()
            yield
        finally:
            self._in_handler = False
            self._claim_ends_at = math.inf

    def _interrupt(self, exception: type[BaseException]) -> None:
        if self._in_handler:
            self._in_handler = False
            raise exception

    def _note(self, number: int) -> None:
        self.signal = number
        self.beat.announce_leaving()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signal:
            return self._interrupt(StopNow)
        return self._note(number)

    def _on_signal_in_slurm(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            return self._on_signal(number, frame)
        if number == signal.SIGTERM and self.signal != number:
            self._stop_at = self.clock() + KILL_WAIT_S / 2
            self._set_alarm()
        if number == signal.SIGTERM or not self.signal:
            self._note(number)

    def _set_alarm(self) -> None:
        """Have SIGALRM sent at the next of the moments that end a handler."""
        left_s = min(
            self._stop_at - self.clock(), self._claim_ends_at - self.beat.progress.running_s
        )
        if self._previous and left_s < math.inf:
            signal.setitimer(signal.ITIMER_REAL, max(left_s, 1e-3))

    def _on_alarm(self, number: int, frame: FrameType | None) -> None:
        progress = self.beat.progress
        if self.clock() >= self._stop_at:
            return self._interrupt(StopNow)
        if progress.running_s < self._claim_ends_at:
            return self._set_alarm()
        if progress.ticked and self.clock() - progress.ticked > AWAY_S and not self._asked_guardian:
            # RACE: woken with its guardian, which has yet to say for how long they stood still.
            self._asked_guardian = True
            signal.setitimer(signal.ITIMER_REAL, ASK_S)
            return None
        return self._interrupt(TookTooLong)

    def sleep(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        """Sleep, but wake for a signal, a lost lease, or when `until` returns True."""
        end = self.clock() + seconds
        while (
            (left := end - self.clock()) > 0 and not self.signal and self.beat.lost is None
        ) and not until():
            self.beat.step()
            time.sleep(min(left, 0.2))

    # ---- decisions ----

    def interruption(self) -> Cause | None:
        """Return why the running claim should be put back rather than finished, None to go on."""
        if self.signal in TIME_SIGNALS or not self.signal and self._is_time_up():
            return Cause.TIME_IS_UP
        return Cause.LEAVING if self.signal or self._is_ordered(Order.STOP) else None

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
            claims = "1 claim" if self.claims_max == 1 else f"{self.claims_max:,} claims"
            return Departure(LeaveReason.CLAIMS_MAX, f"it reached its limit of {claims}")
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
