"""Every error that fsqueue raises on purpose, and what the exit statuses mean.

    FsqueueError                  everything a caller may want to catch
    ├── UsageError                the command line or an argument is wrong
    ├── PoolError                 the pool on disk contradicts the layout: stop and look
    │   └── ClaimDamaged          ... in one claim's file: no worker can run that claim
    ├── NotSupportedError         the file system or machine lacks something fsqueue needs
    ├── BadInput                  one input cannot be planned; the others can
    ├── ClaimLost                 our claim was given to another worker: drop it and carry on
    ├── LeaseLost                 this worker was declared dead: put back what it holds and stop
    ├── ClaimFailed               raised by a handler: this claim failed, for this reason
    │   ├── ClaimImpossible       ... and would fail again anywhere: do not retry it
    │   └── TimedOut              ... it ran longer than its plan's --timeout
    ├── Interrupted               raised by a handler that stopped because it was asked to
    ├── NodeTrouble               raised by a handler: this node or its GPU is at fault
    └── WorkerBroken              raised by a handler: this process must not run another claim

A message has three parts: what happened and where, the likely cause, what to type next.
"""

from __future__ import annotations

import signal
from enum import IntEnum


class ExitStatus(IntEnum):
    """The exit status of a worker or command; `status`, `wait` and `watch` use the same ones."""

    DONE = 0
    ERROR = 1
    USAGE = 2
    SOME_FAILED = 3
    """Everything ended, but some claims failed."""
    NOT_SUPPORTED = 4
    WORK_REMAINS = 5
    """There are claims that this worker could not take."""
    DRAINED = 75
    """The worker left on request or at a limit, before the work was done."""


def exit_status_of_signal(number: int) -> int:
    """Return the exit status after a signal.

    SIGUSR1 is how SLURM asks a worker to drain, and SIGUSR2 how Grid Engine does.
    """
    asked = number in (signal.SIGUSR1, signal.SIGUSR2)
    return ExitStatus.DRAINED if asked else 128 + number


class FsqueueError(Exception):
    """Anything that fsqueue raises on purpose."""

    exit_status: int = ExitStatus.ERROR


class UsageError(FsqueueError):
    """The command line or an argument is wrong."""

    exit_status = ExitStatus.USAGE


class PoolError(FsqueueError):
    """The pool on disk contradicts the layout: stop and look at the path in the message."""


class ClaimDamaged(PoolError):
    """A claim's file does not hold what its name says; no other attempt would read more."""


class NotSupportedError(FsqueueError):
    """The file system or the machine lacks something that fsqueue needs."""

    exit_status = ExitStatus.NOT_SUPPORTED


class BadInput(FsqueueError):
    """One input cannot be planned; planning continues with the others."""


class ClaimLost(FsqueueError):
    """Our lease had lapsed and our claim was given to another worker: drop it and carry on."""


class LeaseLost(FsqueueError):
    """This worker was declared dead: put back what it still holds, and stop."""


class ClaimFailed(FsqueueError):
    """A handler could not do this claim; another attempt may succeed.

    `detail`, for example the tail of stderr, is kept in the attempt's error record, as is
    `returncode`, the exit status of a program that failed (negative for a signal).
    """

    def __init__(self, message: str, *, detail: str = "", returncode: int | None = None) -> None:
        super().__init__(message)
        self.detail = detail
        self.returncode = returncode


class ClaimImpossible(ClaimFailed):
    """A handler could not do this claim, and no other attempt would succeed."""


class TimedOut(ClaimFailed):
    """A claim ran longer than `Work.timeout_s`."""


class Interrupted(FsqueueError):
    """A handler stopped early because `Work.stopping` was set; its checkpoints are saved."""


class NodeTrouble(FsqueueError):
    """This node or its GPU cannot do any claim: they are put back uncharged, the worker stops."""


class WorkerBroken(FsqueueError):
    """This process must not run another claim, for example because its CUDA context is broken."""
