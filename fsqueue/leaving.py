"""Know when a worker should leave, and with which exit status: signals, orders, limits."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType
from typing import Final

from fsqueue.heartbeat import Heartbeat

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
DRAINED: Final = 75


class StopNow(BaseException):
    """The second signal: leave the handler at once."""


@dataclass(slots=True)
class Leaving:
    """The reasons for which one worker leaves before its work is done."""

    beat: Heartbeat
    claims_max: int | None = None
    time_limit_s: float | None = None
    clock: Callable[[], float] = time.monotonic
    signal: int = 0
    _begun: float = field(init=False)

    def __post_init__(self) -> None:
        self._begun = self.clock()

    def listen(self) -> None:
        """Take over the process's signals: the first asks, the second raises StopNow."""

        def heard(number: int, frame: FrameType | None) -> None:
            if self.signal:
                raise StopNow
            self.signal = number

        for number in SIGNALS:
            signal.signal(number, heard)

    def ignore(self) -> None:
        """Let no further signal disturb the goodbye."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def at_once(self) -> bool:
        """Say whether the claim that runs is to be put back, not finished."""
        return bool(self.signal) or self._told("stop") or self._late()

    def why(self, taken: int) -> tuple[int, str] | None:
        """Return the exit status and the reason to take nothing more, if there is one."""
        if self.beat.lost:
            return 1, self.beat.lost
        if self.signal:
            return self.signal_status, f"stopped by {signal.Signals(self.signal).name}"
        for order in ("drain", "stop"):
            if self._told(order):
                reason = f"told to {order} (control/{order}); fsqueue drain --undo takes it back"
                return DRAINED, reason
        if self._late():
            return DRAINED, "its time limit is reached"
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
        worker = self.beat.status.worker_id
        return bool(self.beat.orders & {order, f"{order}@{worker}"})

    def time_left_s(self) -> float:
        """Return how long until the time limit, infinite if there is none."""
        if self.time_limit_s is None:
            return math.inf
        return max(0.0, self._begun + self.time_limit_s - self.clock())

    def _late(self) -> bool:
        return self.time_left_s() <= 0
