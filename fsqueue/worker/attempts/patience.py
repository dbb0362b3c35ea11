"""Repeat an operation on the pool that meets an error of its mount which may pass."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final, TypeVar

from fsqueue.worker.attempts.verdicts import PASSING
from fsqueue.worker.liveness.heartbeat import Heartbeat

log = logging.getLogger(__name__)

T = TypeVar("T")

PAUSE_S: Final = 0.05
PAUSE_MAX_S: Final = 2.0


def patiently(operation: Callable[[], T], what: str, beat: Heartbeat | None, *, for_s: float) -> T:
    """Return what `operation` returns, repeating it for a while (R8).

    It must be one that can be repeated: a rename or link that took effect although it reported an
    error is found to have done so. Gives up at once if the worker's lease was lost. `beat`: None
    before there is a worker.
    """
    give_up_at = time.monotonic() + for_s
    pause_s, reported = PAUSE_S, False
    while True:
        try:
            return operation()
        except OSError as error:
            lost = beat is not None and beat.lost is not None
            too_late = time.monotonic() >= give_up_at or lost
            if error.errno not in PASSING or too_late:
                raise
            if not reported:
                log.warning("%s: %s; trying again", what, error)
            reported = True
        if beat is not None:
            beat.step()
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, PAUSE_MAX_S)
