"""Every error that fsqueue raises on purpose, and the exit status that each one means.

    FsqueueError                  everything a caller may want to catch
    ├── UsageError                what the user typed cannot be right
    ├── PoolError                 the pool on disk contradicts the layout: stop and look
    ├── NotSupportedError         the file system or machine lacks something we assume
    ├── BadInput                  one input cannot be planned; the others can
    ├── ClaimLost                 our claim was moved under us: drop it and carry on
    ├── LeaseLost                 this worker was declared dead: put back what it holds and stop
    ├── ClaimFailed               raised by a handler: this claim failed, for this reason
    │   └── ClaimImpossible       ... and would fail again anywhere: do not try again
    ├── Interrupted               raised by a handler that stopped because it was asked to
    └── WorkerBroken              raised by a handler: this process must not touch another claim

A message has three parts: what happened and where, the likely cause, what to type next.
"""

from __future__ import annotations


class FsqueueError(Exception):
    """Anything that fsqueue raises on purpose."""

    exit_status = 1


class UsageError(FsqueueError):
    """What the user typed cannot be right."""

    exit_status = 2


class PoolError(FsqueueError):
    """The pool on disk contradicts the layout: stop and look at the path named."""


class NotSupportedError(FsqueueError):
    """The file system or the machine lacks something that fsqueue assumes."""

    exit_status = 4


class BadInput(FsqueueError):
    """One input cannot be planned; the rest of the plan goes on."""


class ClaimLost(FsqueueError):
    """Someone moved our claim: our lease had lapsed. Drop the claim and carry on."""


class LeaseLost(FsqueueError):
    """This worker was declared dead. Put back what it still holds, and stop."""


class ClaimFailed(FsqueueError):
    """A handler could not do this claim; it may succeed in another attempt.

    `detail` is kept in the attempt's error record: the tail of stderr, say. So is `returncode`, of
    the program that failed, if one did; negative for a signal.
    """

    def __init__(self, message: str, *, detail: str = "", returncode: int | None = None) -> None:
        super().__init__(message)
        self.detail = detail
        self.returncode = returncode


class ClaimImpossible(ClaimFailed):
    """A handler could not do this claim, and no other attempt would do better."""


class Interrupted(FsqueueError):
    """A handler stopped early because `Work.stopping` was set; its checkpoints are saved."""


class WorkerBroken(FsqueueError):
    """This process must not touch another claim (a CUDA context that is beyond repair, say)."""
