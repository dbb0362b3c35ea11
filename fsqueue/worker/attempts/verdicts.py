"""Decide what the ending of a run means: for the claim, for the worker, and for its GPU.

Every run of a claim ends for one cause, and the table says what follows. It is the only place where
blame is decided; `cause_of` finds the cause of an exception. Nothing here touches a file.

VERDICTS (the table below is tested against `verdict`):

    cause           claim       worker      evidence
    --------------  ----------  ----------  --------
    done            done        go on       for
    already done    done        go on       none
    cancelled       cancelled   go on       none
    leaving         put back    go on       none
    time is up      put back    go on       none
    failed          charged     go on       against
    timed out       charged     reload      against
    impossible      impossible  go on       none
    unable          put back    leave kind  none
    pool trouble    put back    leave it    none
    no space        put back    stop        none
    node trouble    put back    stop        none
    broken          charged     stop        none
    lost            not ours    go on       none

What the words mean:

    put back     as it was: no attempt is charged. If its run saved nothing, its name says so
                 (`vain`), and it is taken after the claims that wait for their first run
    charged      an attempt is charged; after the last one the claim is in failed/
    impossible   in failed/ at once: it would fail anywhere
    leave kind   this worker takes no more claims of that kind
    leave it     this worker does not take that claim again; another worker may do better
    reload       go on, but with a new instance of the handler: the old one was interrupted
    evidence     for or against this worker and its GPU (`suspicion`)

Rules:

R1  An attempt is charged only for what the claim did. What the node, the mount, the scheduler, a
    person or the pool did puts the claim back as it was.
R2  What is wrong with one claim never stops its worker; what is wrong with the worker or its node
    stops it at once, and costs no claim an attempt but the one that broke the process.
R77 A claim that failed for lack of memory, of a plan that says what workers must have then
    (--retry-requires), goes back as one for such workers. Its attempt is charged as any other.
R3  Settling a claim comes before tidying up after it, and tidying never decides anything.
"""

from __future__ import annotations

import errno
import re
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final

from fsqueue.errors import (
    BadInput,
    ClaimDamaged,
    ClaimImpossible,
    ClaimLost,
    Interrupted,
    NodeTrouble,
    NotSupportedError,
    PoolError,
    TimedOut,
    UsageError,
    WorkerBroken,
)


class Cause(StrEnum):
    """Why a run of a claim ended."""

    DONE = "done"
    ALREADY_DONE = "already done"
    """Its output was published before: nothing was run."""
    CANCELLED = "cancelled"
    LEAVING = "leaving"
    """The worker was asked to leave, or a person interrupted it."""
    TIME_IS_UP = "time is up"
    """The worker's time limit, or its allocation's."""
    FAILED = "failed"
    TIMED_OUT = "timed out"
    """It ran longer than its plan's --timeout."""
    IMPOSSIBLE = "impossible"
    UNABLE = "unable"
    """This worker lacks what such claims need: a handler, a model, a permission."""
    POOL_TROUBLE = "pool trouble"
    """A mount gave an error, or a file of the pool may not be trusted."""
    NO_SPACE = "no space"
    NODE_TROUBLE = "node trouble"
    """This process cannot open a file, start a process, use a temporary directory, or its GPU."""
    BROKEN = "broken"
    """The process must not run another claim: its CUDA context is damaged, say."""
    LOST = "lost"
    """The lease had lapsed, and another worker has the claim."""


class ForClaim(StrEnum):
    """What becomes of the claim."""

    DONE = "done"
    CANCELLED = "cancelled"
    PUT_BACK = "put back"
    CHARGED = "charged"
    IMPOSSIBLE = "impossible"
    NOT_OURS = "not ours"


class ForWorker(StrEnum):
    """What the worker does next."""

    GO_ON = "go on"
    RELOAD = "reload"
    LEAVE_KIND = "leave kind"
    LEAVE_IT = "leave it"
    STOP = "stop"


class Evidence(StrEnum):
    """Whether the ending speaks for or against this worker and its GPU."""

    FOR = "for"
    AGAINST = "against"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What follows from one cause."""

    claim: ForClaim
    worker: ForWorker = ForWorker.GO_ON
    evidence: Evidence = Evidence.NONE


_VERDICTS: Final = MappingProxyType(
    {
        Cause.DONE: Verdict(ForClaim.DONE, evidence=Evidence.FOR),
        Cause.ALREADY_DONE: Verdict(ForClaim.DONE),
        Cause.CANCELLED: Verdict(ForClaim.CANCELLED),
        Cause.LEAVING: Verdict(ForClaim.PUT_BACK),
        Cause.TIME_IS_UP: Verdict(ForClaim.PUT_BACK),
        Cause.FAILED: Verdict(ForClaim.CHARGED, evidence=Evidence.AGAINST),
        Cause.TIMED_OUT: Verdict(ForClaim.CHARGED, ForWorker.RELOAD, Evidence.AGAINST),
        Cause.IMPOSSIBLE: Verdict(ForClaim.IMPOSSIBLE),
        Cause.UNABLE: Verdict(ForClaim.PUT_BACK, ForWorker.LEAVE_KIND),
        Cause.POOL_TROUBLE: Verdict(ForClaim.PUT_BACK, ForWorker.LEAVE_IT),
        Cause.NO_SPACE: Verdict(ForClaim.PUT_BACK, ForWorker.STOP),
        Cause.NODE_TROUBLE: Verdict(ForClaim.PUT_BACK, ForWorker.STOP),
        Cause.BROKEN: Verdict(ForClaim.CHARGED, ForWorker.STOP),
        Cause.LOST: Verdict(ForClaim.NOT_OURS),
    }
)


def verdict(cause: Cause) -> Verdict:
    """Return what follows from a cause: a row of the table above."""
    return _VERDICTS[cause]


# ---- causes of exceptions ----

PASSING: Final = frozenset(
    getattr(errno, name)
    for name in (
        "EIO ESTALE ETIMEDOUT ENOTCONN ESHUTDOWN EHOSTDOWN EHOSTUNREACH ENETDOWN ENETUNREACH "
        "ECONNRESET ECONNABORTED EREMOTEIO ENOLCK EBUSY EAGAIN EINTR EDEADLK EPROTO"
    ).split()
    if hasattr(errno, name)
)
"""Errors of a mount, which say nothing about the claim and may be gone a moment later."""
NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
LIMITS: Final = frozenset({errno.EMFILE, errno.ENFILE})
_OUT_OF_MEMORY: Final = re.compile(
    r"out[ _]of[ _]memory|OutOfMemory|\bMemoryError\b|Cannot allocate memory|std::bad_alloc"
    r"|oom-?kill",
    re.IGNORECASE,
)
_NO_TEMPORARY_DIRECTORY: Final = "No usable temporary directory"


def cause_of(error: BaseException, *, running: bool) -> Cause:
    """Return the cause that an exception stands for.

    `running`: it came out of the handler; else from reading the claim or publishing its output,
    where any error of the file system is the pool's.
    """
    if isinstance(error, ClaimLost):
        return Cause.LOST
    if isinstance(error, Interrupted):
        return Cause.LEAVING
    if isinstance(error, WorkerBroken):
        return Cause.BROKEN
    if isinstance(error, NodeTrouble):
        return Cause.NODE_TROUBLE
    if isinstance(error, TimedOut):
        return Cause.TIMED_OUT
    if isinstance(error, UsageError | NotSupportedError):
        return Cause.UNABLE
    if isinstance(error, ClaimDamaged | BadInput) or _is_impossible(error):
        return Cause.IMPOSSIBLE
    for each in _os_errors(error):
        if (cause := _cause_of_os_error(each)) is not None:
            # What has used up the descriptors of this process is the handler that ran in it.
            return Cause.BROKEN if running and each.errno == errno.EMFILE else cause
    if isinstance(error, PoolError) or isinstance(error, OSError) and not running:
        return Cause.POOL_TROUBLE
    return Cause.FAILED


def lacked_memory(record: Mapping[str, Any]) -> bool:
    """Return whether an attempt failed for lack of memory, by what was recorded of it (R77).

    There is no type for it: PyTorch, CUDA, C++ and the kernel each have their words. A program that
    was killed by SIGKILL, and not by its worker, was most likely killed by the kernel for it.
    """
    if record.get("returncode") in (-signal.SIGKILL, 128 + signal.SIGKILL):
        return True
    text = f"{record.get('error', '')}\n{record.get('detail', '')}"
    return _OUT_OF_MEMORY.search(text) is not None


def _is_impossible(error: BaseException) -> bool:
    """Return whether it would fail anywhere; not if that was found out through a failing mount."""
    if not isinstance(error, ClaimImpossible):
        return False
    return all(_cause_of_os_error(each) is None for each in _os_errors(error))


def _cause_of_os_error(error: OSError) -> Cause | None:
    if error.errno in NO_SPACE:
        return Cause.NO_SPACE
    if error.errno in LIMITS or _NO_TEMPORARY_DIRECTORY in (error.strerror or ""):
        return Cause.NODE_TROUBLE
    return Cause.POOL_TROUBLE if error.errno in PASSING else None


def _os_errors(error: BaseException | None) -> Iterator[OSError]:
    """Yield the errors of the system that led to this one: handlers raise their own from them."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError):
            yield error
        error = error.__cause__
