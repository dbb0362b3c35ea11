"""Deliberate mistakes in the numbered rules R1-R35, as far as a file system shows them.

Each is registered beside those of `mutations`; rules about signals, terminals and real programs
have theirs in tests/test_rule_mutations.py.
"""

from __future__ import annotations

import os.path
from collections.abc import Iterator
from functools import partial
from signal import SIGHUP
from typing import Any

from fsqueue.errors import ClaimFailed
from fsqueue.maintenance import audit
from fsqueue.pool import claims, completeness, leases, plans, proof_of_life
from fsqueue.pool.layout import Layout, State
from fsqueue.pool.leases import Observer
from fsqueue.pool.names import LeaseName
from fsqueue.pool.settings import PoolDirectory
from fsqueue.records import checksums
from fsqueue.records.status import LeaveReason
from fsqueue.scheduling.choose import Preferences
from fsqueue.storage import atomic, directories
from fsqueue.worker import handler_cache
from fsqueue.worker.attempts import attempt, verdicts
from fsqueue.worker.attempts.attempt import Attempt
from fsqueue.worker.attempts.probe import Finding, Found, Probe
from fsqueue.worker.attempts.verdicts import Cause, Evidence, ForClaim, ForWorker, Verdict
from fsqueue.worker.ending import Ending
from fsqueue.worker.liveness.guardian import Guardian
from fsqueue.worker.liveness.progress import Silence
from fsqueue.worker.recovery import Recovery
from fsqueue.worker.shutdown import Departure, Shutdown, StopNow
from fsqueue.worker.worker import Worker
from tests.sim.fake_os import SIM
from tests.sim.mutations import Function, mutation, wrong_constant

# ---- blame ----


@mutation(
    "R1: an error of the mount is the claim's",
    verdicts,
    "_cause_of_os_error",
    scene="the mount fails while handlers write",
)
def _(right: Function, error: OSError) -> Cause | None:
    return None


@mutation(
    "R1: an error of the mount means that there is no output",
    handler_cache,
    "require_output",
    scene="the mount fails when an output is looked for",
)
def _(right: Function, path: str, handler: str) -> None:
    if not handler_cache.os.path.isfile(path):
        raise ClaimFailed("no output")


@mutation("R2: an impossible claim stops its worker", verdicts, "verdict")
def _(right: Function, cause: Cause) -> Verdict:
    if cause is Cause.IMPOSSIBLE:
        return Verdict(ForClaim.IMPOSSIBLE, ForWorker.STOP, Evidence.NONE)
    decided: Verdict = right(cause)
    return decided


@mutation("R3: tidy up before the claim is settled", Attempt, "_settle",
          scene="debris cannot be removed")  # fmt: skip
def _(right: Function, self: Attempt, cause: Cause, error: Any, seconds: float) -> None:
    if verdicts.verdict(cause).claim is not ForClaim.DONE:
        directories.empty(self.pool.scratch(self.beat.status.worker_id))
        atomic.os.rmdir(self.pool.scratch(self.beat.status.worker_id))
    right(self, cause, error, seconds)


@mutation(
    "R4: what was put back in vain is taken like the rest",
    Preferences,
    "standing",
    scene="a claim is longer than every time limit",
)
def _(right: Function, self: Preferences, id: str, vain: int, priority: int = 0) -> Any:
    return right(self, id, 0, priority)


@mutation("R5: a signal interrupts more than handlers", Shutdown, "_interrupt",
          scene="two signals come while a claim is taken")  # fmt: skip
def _(right: Function, self: Shutdown, exception: type[BaseException]) -> None:
    raise StopNow


@mutation("R6: a closed terminal kills", Shutdown, "install_handlers",
          scene="signals come while handlers write")  # fmt: skip
def _(right: Function, self: Shutdown) -> None:
    right(self)
    SIM.world.me.handlers.pop(SIGHUP)


@mutation("R7: three failures prove that a worker is broken", Probe, "examine",
          scene="bad inputs come first")  # fmt: skip
def _(right: Function, self: Probe, *given: Any) -> Finding:
    return Finding(Found.FAILS, "three claims failed")


@mutation(
    "R8: an error of the mount ends a worker",
    Worker,
    "_endure",
    scene="the mount fails while workers look for work",
)
def _(right: Function, self: Worker, error: OSError) -> None:
    raise error


# ---- life and death ----


@mutation("R10: a stuck main thread is not noticed", Silence, "look",
          scene="a main thread is stuck")  # fmt: skip
def _(right: Function, self: Silence, *, excused: bool = False) -> float:
    return 0.0


@mutation("R11: what /proc does not show is gone", proof_of_life, "_does_not_exist",
          scene="/proc hides other processes")  # fmt: skip
def _(right: Function, pid: int) -> bool:
    return True


@mutation("R11: any /proc is ours", proof_of_life, "_proc_is_ours", scene="/proc is the outer one")
def _(right: Function) -> bool:
    return True


@mutation("R11: a clone's processes are ours", Observer, "is_gone", scene="hosts are clones")
def _(right: Function, self: Observer, worker: str) -> bool:
    here = {"host": leases.proof_of_life()["host"]}
    return leases.look_at_process({**self.facts(worker), **here}) is leases.Process.GONE


@mutation("R12: a silent process that runs is dead", Observer, "process", scene="renewals hang")
def _(right: Function, self: Observer, worker: str) -> leases.Process:
    seen: leases.Process = right(self, worker)
    return leases.Process.UNKNOWN if seen is leases.Process.RUNNING else seen


@mutation(
    "R13: a lease that one listing misses is gone",
    leases,
    "_names_of",
    scene="replies to renewals are lost in a busy directory",
)
def _(right: Function, pool: PoolDirectory, worker: str) -> list[LeaseName]:
    return [name for name in leases.lease_names(pool) if name.worker == worker]


@mutation("R13: a claim that one listing misses is lost", claims, "_is_seen",
          scene="claims fail in a busy directory")  # fmt: skip
def _(right: Function, path: str) -> bool:
    directory, name = os.path.split(path)
    return name in atomic.names(directory)


wrong_constant("R13: a plan that one listing misses is none", plans, "ABSENT_LOOKS", 1,
               scene="three plan beside a busy directory")  # fmt: skip


@mutation("R14: a busy worker watches nobody", Recovery, "sweep_while_busy",
          scene="one worker dies and another is busy")  # fmt: skip
def _(right: Function, self: Recovery) -> list[Any]:
    return []


@mutation("R15: a worker that was leaving is charged", Observer, "excuses",
          scene="a worker dies while it leaves")  # fmt: skip
def _(right: Function, self: Observer, worker: str) -> bool:
    return False


@mutation("R16: a handler whose time is up runs on", Guardian, "_end_overdue",
          scene="a handler cannot be interrupted")  # fmt: skip
def _(right: Function, self: Guardian) -> None:
    return


@mutation("R17: a guardian leaves a dead worker's lease", Guardian, "_bury",
          scene="workers with guardians are killed")  # fmt: skip
def _(right: Function, self: Guardian) -> None:
    return


@mutation("R18: a look opens every lease", Observer, "look")
def _(right: Function, self: Observer, owners: Any = ()) -> None:
    right(self, owners)
    for worker in self._seen:
        self.facts(worker)


@mutation("R19: ended leases stay among the living", Layout, "lease")
def _(right: Function, self: Layout, name: LeaseName) -> str:
    return f"{self.root}/workers/{name}"


# ---- done ----


@mutation("R30: all is done that does not wait", Ending, "all_ended",
          scene="a waiting claim is purged")  # fmt: skip
def _(right: Function, self: Ending) -> Departure:
    return Departure(LeaveReason.ALL_DONE)


@mutation("R30: a claim that is nowhere counts as done", completeness, "_compare",
          scene="a waiting claim is purged")  # fmt: skip
def _(right: Function, *given: Any) -> tuple[list[Any], int]:
    return [], 0


wrong_constant("R31: a claim that one look misses is missing", completeness, "LOOKS", 1,
               scene="claims fail in a busy directory")  # fmt: skip


@mutation("R31: what a plan without a number staged counts", completeness, "_staged",
          scene="workers end while others plan")  # fmt: skip
def _(right: Function, pool: PoolDirectory, uids: Any) -> Any:
    listed = atomic.names(pool.directory("plans"))
    return right(pool, {text.removesuffix(".staged") for text in listed})


@mutation("R31: an output that one listing misses is missing", audit, "_without_output",
          scene="claims fail in a busy directory")  # fmt: skip
def _(right: Function, pool: PoolDirectory, asked: Any) -> Iterator[tuple[str, str]]:
    looked = partial(audit.look, owned=True, asked=asked)
    outputs = set(audit._outputs(pool))
    for id, _name in atomic.gather(pool.state(State.DONE), looked).asked:
        if f"{id}.txt" not in outputs:
            yield id, f"{id}.txt"


@mutation("R32: a checksum is recorded of what is not published", attempt, "_publish")
def _(right: Function, private: str, final: str) -> bool:
    return True


@mutation("R33: an output without a record is damaged", checksums, "verify_outputs")
def _(right: Function, pool: PoolDirectory, *, deep: bool = False) -> Any:
    found = right(pool, deep=deep)
    known = {output for output, _ in checksums.read_records(pool)}
    for name in set(atomic.names(pool.directory("outputs"))) - known:
        found.damaged[name] = "has no record"
    return found
