"""Move claims. Every rename of a claim in the program is in this module.

Definitions. A claim *waits* in a spool, *runs* in running/, and ends in done/ or failed/. It is
*owned* by the worker in its name. The *reply* to an operation *is lost* when the file system did it
but reported an error.

Invariants:

I1  A planned claim is in exactly one of the state directories, once its plan is complete.
I2  A claim moves only by one rename(2), and every such rename is in this module.
I3  The worker whose rename into running/ took effect owns the claim; no other process moves it
    while the owner's lease holds.
I4  A claim is complete before it is visible, and its bytes never change afterwards.
I5  Locks make taking cheap, never correct: with every spool lock removed, I1-I4 hold.
I6  Output is published before its claim enters done/. So done implies output.
I7  An output, once visible under its final name, is never replaced. A second attempt that finds it
    adopts it.
I8  Deleting status/ and events/ changes nothing but what is displayed.
I9  A worker's lease moves only by rename, from the exact beat last seen (`leases`); a worker that
    loses that race has lost its lease. Lock files are never unlinked (`storage.locks`).

                  publish             take                finish
         (staged) ------> [waiting] -------> [running] ---------> [done]
                            ^   ^              | | |
                            |   '-- release ---' | |     fail
                            '------ requeue -----' '------------> [failed] --- retry --> [waiting]
                                                  cancel ------------^

Why rename(2) alone is enough: only the owner could choose a target name with its id in it, so a
rename never overwrites and never has two winners; a waiting name is never used twice (`returns`),
so an operation that arrives late or twice finds nothing to act on; and after a rename that reported
failure, `move` looks whether its target is there before it reports the claim as lost.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import secrets
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final

from fsqueue.errors import ClaimDamaged, ClaimLost, FsqueueError, PoolError
from fsqueue.pool.layout import SUFFIX, State
from fsqueue.pool.leases import ABSENT_LOOKS
from fsqueue.pool.names import ATTEMPT_MAX, ClaimName, id_and_cost, is_given_up
from fsqueue.pool.requirements import CAPABILITY
from fsqueue.pool.settings import PoolDirectory
from fsqueue.storage import atomic, directories, permissions
from fsqueue.storage.untrusted import FACTS_MAX, number, parse_json

log = logging.getLogger(__name__)

COUNT_MAX: Final = 10**18
CANCELLED_WAITING: Final = {"error": "cancelled before it ran", "cancelled": True}
"""The error record of a claim that was cancelled while it waited."""
CANCELLED_RUNNING: Final = {"error": "cancelled while it ran", "cancelled": True}
"""The error record of a claim that was cancelled while it ran."""
SUPERSEDED: Final = {
    "error": "superseded: its input changed and was planned again",
    "given_up": True,
}
"""The record of a claim that a plan of a newer version of its input replaced."""
FORGOTTEN: Final = {"error": "forgotten: given up for good by fsqueue forget", "given_up": True}
"""The record of a failed claim that a person gave up."""
_SPENT: Final = "was put back so often that no further waiting name is left for it"


def publish(pool: PoolDirectory, plan: str, spool: str, name: ClaimName) -> bool:
    """Move a staged claim, whole (I4), to its spool; False if another process has done so."""
    return move(f"{pool.staged(plan, spool)}/{name}", pool.waiting(spool, name))


def take(pool: PoolDirectory, spool: str, name: ClaimName, worker: str) -> ClaimName | None:
    """Take a waiting claim for `worker`; None if another worker got it. I3."""
    mine = name.owned_by(worker)
    if move(pool.waiting(spool, name), pool.owned(State.RUNNING, mine)):
        return mine
    return None


def finish(pool: PoolDirectory, name: ClaimName) -> None:
    """Move our claim, whose output is published already (I6), to done/. Raises ClaimLost."""
    _leave_running(pool, name, pool.owned(State.DONE, name), "finished")


def fail(pool: PoolDirectory, name: ClaimName) -> None:
    """Move a running claim to failed/ after its last attempt. Raises ClaimLost."""
    _leave_running(pool, name, pool.owned(State.FAILED, name), "failed")


def release(pool: PoolDirectory, name: ClaimName, spool: str, *, vain: bool = False) -> ClaimName:
    """Put a running claim back without charging an attempt.

    The owner does so when it leaves; recovery, if SLURM ended the owner's job, or if all that is
    left to do is to adopt the output that the owner published. `vain`: it ran, and saved nothing;
    then it is taken after the claims that wait for their first run. A claim without a further
    waiting name fails instead. Raises ClaimLost.
    """
    if name.is_spent:
        return charge(pool, name, spool, {"error": _SPENT}, final=True)
    back = name.returned(failed=False, vain=vain)
    _leave_running(pool, name, pool.waiting(spool, back), "released")
    return back


def requeue(
    pool: PoolDirectory, name: ClaimName, spool: str, *, kind: str | None = None
) -> ClaimName:
    """Put a running claim back and charge an attempt. Raises ClaimLost.

    `kind`: what the next worker must have, if that is more than before (R77).
    """
    back = replace(name.returned(failed=True), kind=kind or name.kind)
    _leave_running(pool, name, pool.waiting(spool, back), "requeued")
    return back


def retry(pool: PoolDirectory, name: ClaimName, spool: str) -> ClaimName | None:
    """Put a failed claim back with a new round of attempts; None if another process did.

    The attempts are numbered on from the rounds before, so that no error record is overwritten.
    """
    fresh = (name.attempt // pool.attempts_max + 1) * pool.attempts_max
    if name.is_spent or fresh > ATTEMPT_MAX:
        raise PoolError(
            f"{name.id} {_SPENT}. See its errors (fsqueue failed {pool.root}), then plan its input "
            f"into a new pool."
        )
    back = replace(name.returned(failed=True), attempt=fresh)
    moved = move(pool.owned(State.FAILED, name), pool.waiting(spool, back))
    return back if moved else None


def cancel(pool: PoolDirectory, spool: str, name: ClaimName, by: str) -> ClaimName | None:
    """Move a waiting claim to failed/; None if a worker took it first."""
    ended = name.owned_by(by)
    return ended if move(pool.waiting(spool, name), pool.owned(State.FAILED, ended)) else None


# ---- what a person, or a new plan, decides about a claim that ended ----


def give_up(pool: PoolDirectory, name: ClaimName, by: str) -> ClaimName | None:
    """Give a failed claim up, for good; None if another process moved it first.

    It stays in failed/, as an attempt that never ran, under a process whose role says why.
    """
    ended = replace(name if name.is_spent else name.returned(failed=True), owner=by)
    moved = move(pool.owned(State.FAILED, name), pool.owned(State.FAILED, ended))
    return ended if moved else None


def undo_done(pool: PoolDirectory, name: ClaimName, spool: str) -> ClaimName | None:
    """Put a done claim back whose output is lost; None if another process did, or it is spent."""
    if name.is_spent:
        return None
    back = name.returned(failed=False)
    return back if move(pool.owned(State.DONE, name), pool.waiting(spool, back)) else None


def plan_again(
    pool: PoolDirectory, spool: str, name: ClaimName, claim: Claim, *, personal: bool
) -> bool:
    """Publish, under a name it never had, a claim whose file is gone; False if it is there."""
    return atomic.publish(pool.waiting(spool, name), claim.encode(name), personal=personal)


def set_aside(pool: PoolDirectory, path: str) -> str | None:
    """Move a file of the pool out of the way, never removing it; return where it is now.

    Returns None if it is gone already.
    """
    directories.make(pool.set_aside)
    target = f"{pool.set_aside}/{secrets.token_hex(4)}-{os.path.basename(path)}"
    return target if move(path, target) else None


def charge(
    pool: PoolDirectory,
    name: ClaimName,
    spool: str,
    record: dict[str, Any],
    *,
    final: bool = False,
    kind: str | None = None,
) -> ClaimName:
    """Charge a failed attempt to a running claim: requeue it, or fail it after the last one.

    The record is written before the claim moves, so that no crash in between loses it. A round has
    `attempts_max` attempts, counted from a0; each `retry` starts a new round. `kind`: as for
    `requeue`. Raises ClaimLost.
    """
    if not _is_seen(pool.owned(State.RUNNING, name)):
        # A zombie's record would stand for good, while its successor may run the same attempt.
        raise _lost(name, "charged")
    record_error(pool, name, record)
    if final or name.is_spent or (name.attempt + 1) % pool.attempts_max == 0:
        fail(pool, name)
        return name
    return requeue(pool, name, spool, kind=kind)


def record_error(pool: PoolDirectory, name: ClaimName, record: dict[str, Any]) -> None:
    """Record what went wrong in this attempt; the first record of an attempt stands."""
    facts = {"id": name.id, "attempt": name.attempt, "worker": name.owner, "at": time.time()}
    data = json.dumps(facts | record, indent=1, default=str).encode() + b"\n"
    atomic.publish(pool.error(name.id, name.attempt), data)


def record_vain_run(
    pool: PoolDirectory, name: ClaimName, reason: str, ran_s: float, *, by: str = ""
) -> None:
    """Record why a run that saved nothing ended, and after how long, for those that decide later.

    Call it before the claim is released. It is a hint: a failure to write it raises nothing.
    """
    facts = {"id": name.id, "attempt": name.attempt, "returns": name.returns}
    facts |= {"worker": name.owner, "at": time.time(), "put_back": reason, "ran_s": round(ran_s, 3)}
    if by:
        facts["recovered_by"] = by
    try:
        data = json.dumps(facts, indent=1).encode() + b"\n"
        atomic.publish(pool.vain_run(name.id, name.returns), data, durable=False)
    except (OSError, FsqueueError) as error:
        log.debug("%s: why it was put back is not recorded: %s", name.id, error)


def vain_runs(pool: PoolDirectory, name: ClaimName) -> list[dict[str, Any]]:
    """Return the records of the runs that a waiting claim was put back from in vain, newest first.

    Runs whose worker was merely asked to leave have none.
    """
    found = []
    for returns in reversed(range(max(0, name.returns - name.vain), name.returns)):
        try:
            path = pool.vain_run(name.id, returns)
            found.append(parse_json(path, atomic.read(path, patience_s=0.0, limit=FACTS_MAX)))
        except (OSError, FsqueueError):
            continue  # RACE: not visible yet on a network mount, or cleaned up
    return found


def _leave_running(pool: PoolDirectory, name: ClaimName, target: str, verb: str) -> None:
    if not move(pool.owned(State.RUNNING, name), target) and not _is_seen(target):
        atomic.names(pool.state(State.RUNNING))  # raises PoolError if the directory is gone
        raise _lost(name, verb)


def _is_seen(path: str) -> bool:
    """Return whether one of several listings shows a name: a single one may miss it (R13)."""
    directory, name = os.path.split(path)
    return any(name in atomic.names(directory) for _ in range(ABSENT_LOOKS))


def _lost(name: ClaimName, verb: str) -> ClaimLost:
    return ClaimLost(
        f"{name.id} could not be {verb}: it is no longer in running/ under {name.owner}. That "
        f"worker's lease had lapsed, and the claim was given to another worker."
    )


def move(source: str, target: str) -> bool:
    """Rename; return whether the name is at `target` now, by this rename or an identical one."""
    try:
        atomic.rename(source, target)  # I2
        return True
    except OSError as error:
        if error.errno not in atomic.GONE:
            raise
        # RACE: another process moved it first; or our rename took effect, its reply was lost, and a
        # retransmission found nothing. Only a listing tells which, because the failed rename itself
        # may have left a cached "no such name" for the target.
        directory, name = os.path.split(target)
        return name in atomic.names(directory)


# ---- reading ----


def waiting(pool: PoolDirectory, spool: str) -> list[ClaimName]:
    """List the claims that wait in a spool, in no order, skipping other names."""
    return [
        name
        for text in atomic.names(pool.spool(spool))
        if (name := ClaimName.parse(text)) is not None and name.owner is None
    ]


def any_failed(pool: PoolDirectory) -> bool:
    """Return whether any claim failed and was not given up since (superseded or forgotten)."""
    return atomic.gather(
        pool.state(State.FAILED),
        lambda texts: any(id_and_cost(t, owned=True) and not is_given_up(t) for t in texts),
    )


def any_owned(pool: PoolDirectory, state: State) -> bool:
    """Return whether any claim is in running/, done/ or failed/."""
    return atomic.gather(
        pool.state(state), lambda texts: any(id_and_cost(text, owned=True) for text in texts)
    )


def owned(pool: PoolDirectory, state: State) -> Iterator[ClaimName]:
    """Yield the claims in running/, done/ or failed/."""
    for text in atomic.names(pool.state(state)):
        if (name := ClaimName.parse(text)) is not None and name.owner is not None:
            yield name


@dataclass(slots=True)
class Claim:
    """A claim's content: which handler, whose spool, which options, and what to do."""

    handler: Final[str]
    spool: Final[str]
    options: Final[dict[str, Any]]
    payload: Final[dict[str, Any]]
    measures: Final[dict[str, int]]
    suffix: Final[str | None] = None
    """Its output is outputs/ID + suffix; None if it has no output."""
    timeout_s: Final[float] = 0.0
    """An attempt that takes longer fails; 0: it may take any time."""
    retry_requires: Final[str] = ""
    """What workers must have for another attempt, once one failed for lack of memory (R77)."""
    file: Final[os.stat_result | None] = field(default=None, compare=False, repr=False)
    """Its file's stat; None for a claim that was not read from a file."""

    @property
    def written_by_this_user(self) -> bool:
        """Whether this user wrote it, as far as files show (see `storage.permissions`)."""
        return self.file is None or permissions.is_written_by(self.file, os.geteuid())

    def encode(self, name: ClaimName) -> bytes:
        """Return the bytes of the claim's file."""
        facts: dict[str, Any] = {
            "id": name.id,
            "handler": self.handler,
            "spool": self.spool,
            "suffix": self.suffix,
            "measures": self.measures,
            "options": self.options,
            "payload": self.payload,
        }
        if self.timeout_s:
            facts["timeout_s"] = self.timeout_s
        if self.retry_requires:
            facts["retry_requires"] = self.retry_requires
        return json.dumps(facts, separators=(",", ":")).encode() + b"\n"


def read_claim(
    pool: PoolDirectory,
    name: ClaimName,
    *,
    patience_s: float = atomic.STALE_S,
    state: State = State.RUNNING,
) -> Claim:
    """Read an owned claim. Raises ClaimDamaged if it does not hold the claim that its name says.

    Raises ClaimLost if it is not in running/ (or `state`) for `patience_s`; PoolError if its file
    is not one that may be trusted.
    """
    path = pool.owned(state, name)
    try:
        data, file = atomic.read_with_facts(path, patience_s=patience_s)
    except PoolError as error:
        if _is_readable_file(path):
            raise  # it may not be trusted, which says nothing about what it holds
        raise ClaimDamaged(str(error)) from error
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESTALE):
            raise ClaimLost(
                f"{path} is gone: its owner's lease had lapsed, and another worker got it."
            ) from error
        raise
    try:
        facts = parse_json(path, data)
    except PoolError as error:
        raise ClaimDamaged(str(error)) from error
    handler, spool = facts.get("handler"), facts.get("spool")
    options, payload = facts.get("options"), facts.get("payload")
    if (
        facts.get("id") != name.id
        or not (isinstance(handler, str) and isinstance(spool, str))
        or not (isinstance(options, dict) and isinstance(payload, dict))
    ):
        raise ClaimDamaged(
            f"{path} does not hold the claim that its name says; it was edited or damaged. Restore "
            f"it, or plan its inputs into a new pool."
        )
    given, suffix = facts.get("measures"), facts.get("suffix")
    measures = {}
    if given and isinstance(given, dict):
        measures = {key: n for key, n in given.items() if type(n) is int and abs(n) < COUNT_MAX}
    known = suffix if isinstance(suffix, str) and SUFFIX.fullmatch(suffix) else None
    timeout_s = max(0.0, number(facts.get("timeout_s")) or 0.0)
    more = facts.get("retry_requires")
    more = more if isinstance(more, str) and CAPABILITY.fullmatch(more) else ""
    return Claim(handler, spool, options, payload, measures, known, timeout_s, more, file)


def _is_readable_file(path: str) -> bool:
    try:
        facts = os.lstat(path)
    except OSError:
        return True  # RACE: it was moved meanwhile
    return stat.S_ISREG(facts.st_mode) and facts.st_size <= atomic.READ_LIMIT


def is_published(pool: PoolDirectory, name: ClaimName, claim: Claim) -> bool:
    """Return whether a claim's output is published (I7). A mount may be late to show it."""
    return claim.suffix is not None and os.path.lexists(pool.output(name.id, claim.suffix))


def waiting_name(id: str, kind: str, cost: int, priority: int = 0) -> ClaimName:
    """Return the first waiting name of a new claim; PoolError if a part is not valid."""
    name = ClaimName(id, kind, cost, priority=priority)
    if ClaimName.parse(str(name)) != name:
        raise PoolError(
            f"{name} is not a valid claim name: its handler gave a bad id, kind or cost."
        )
    return replace(name)
