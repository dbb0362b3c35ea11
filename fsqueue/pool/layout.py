"""Define every path in a pool.

Directory structure (a claim's state is its directory; `names` defines the file names):

    pool/
      pool.json                 format, id, created, lease_s, attempts_max; written once
      plans/000001.json         what one `plan` planned; its number is the compare-and-swap
      plans/3f9a.staged/        its claims until each is moved to its spool
      spools/gpu0.json          this spool's GPU: model, weight
      spools/gpu0.lock          held while stealing from it (saves work; not for correctness)
      spools/gpu0/CLAIM         waiting
      running/CLAIM@WORKER      taken by that worker
      done/CLAIM@WORKER         its output exists
      failed/CLAIM@WORKER       gave up after the last attempt, or cancelled
      errors/ID.aN.json         what went wrong in attempt N
      partial/ID/               checkpoints inside a long claim
      workers/WORKER.b000412    the worker's lease: its name carries its beat
      workers/ended/            the leases of workers that left or died
      status/WORKER.json        its last heartbeat: for display, never for correctness
      events/WORKER.jsonl       its journal: one writer, append-only
      outputs/ID.SUFFIX         what handlers made
      checksums/WORKER.jsonl    size, checksum and provenance of what that worker published
      code/NAME-HASH.py         what `plan python` planned to run; its hash is in the claims
      set-aside/                what `check --repair` took out of the way; nothing reads it
      outputs/.WORKER/          what that worker is still writing
      control/ORDER[@TARGET]    drain, pause, stop, cancel: the file's presence is the order
      gpu_metrics.log           how busy and fast each GPU was; one writer, by its .lock
      time_use.log              what became of the time, if handlers report it; the same writer
      inbox/                    claims addressed to one worker, a small pool (see `inbox`)

No path is ever built from unchecked text: every method here asserts that the names it joins match
the patterns of `names`, which admit neither `/` nor a leading dot.

What this module does not know: what is in any of these files.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from fsqueue.pool.names import ID, SPOOL, WORKER, ClaimName, LeaseName

FORMAT: Final = 1
"""Version of this layout, kept in pool.json. Raise it with any change that an older worker would
misread; `settings.open_pool` refuses other versions."""

SUFFIX: Final = re.compile(r"(\.[A-Za-z0-9_-]{1,16}){1,3}", re.ASCII)
CHECKPOINT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", re.ASCII)


class State(StrEnum):
    """The states of a claim. The values are directory names."""

    WAITING = "spools"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


class Order(StrEnum):
    """What workers can be ordered to do. The values are file names in control/."""

    DRAIN = "drain"
    """Finish the current claim, then leave."""
    STOP = "stop"
    """Put the current claim back, then leave."""
    PAUSE = "pause"
    """Stay, but take nothing more."""


CANCEL: Final = "cancel"
"""control/cancel@ID orders the worker that runs the claim ID to give it up."""
ORDER: Final = re.compile(rf"({'|'.join((*Order, CANCEL))})(?:@({ID.pattern}))?", re.ASCII)


DIRECTORIES: Final = (
    "plans spools running done failed errors partial workers status events outputs control".split()
)


def order_name(order: str, target: str | None = None) -> str:
    """Return the name in control/ of an order: to a target (a worker or a claim), or to all."""
    return f"{order}@{target}" if target else order


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths of the pool at `root`, an absolute path."""

    root: str

    def directory(self, name: str) -> str:
        """Return one of the pool's own directories."""
        assert name in DIRECTORIES, name
        return f"{self.root}/{name}"

    @property
    def settings(self) -> str:
        return f"{self.root}/pool.json"

    # ---- claims ----

    def state(self, state: State) -> str:
        """Return the directory of a state."""
        return f"{self.root}/{state.value}"

    def waiting(self, spool: str, name: ClaimName) -> str:
        assert name.owner is None, name
        return f"{self.spool(spool)}/{name.checked()}"

    def owned(self, state: State, name: ClaimName) -> str:
        """Return where an owned claim lies in running/, done/ or failed/."""
        assert name.owner is not None and state is not State.WAITING, (state, name)
        return f"{self.root}/{state}/{name.checked()}"

    # ---- spools ----

    def spool(self, spool: str) -> str:
        assert SPOOL.fullmatch(spool), spool
        return f"{self.root}/spools/{spool}"

    def spool_file(self, spool: str) -> str:
        return f"{self.spool(spool)}.json"

    def spool_lock(self, spool: str) -> str:
        return f"{self.spool(spool)}.lock"

    # ---- plans ----

    def plan(self, number: int) -> str:
        return f"{self.root}/plans/{number:06d}.json"

    def staged(self, plan: str, spool: str | None = None) -> str:
        assert ID.fullmatch(plan) and (spool is None or SPOOL.fullmatch(spool)), (plan, spool)
        tail = f"/{spool}" if spool else ""
        return f"{self.root}/plans/{plan}.staged{tail}"

    # ---- workers ----

    def lease(self, name: LeaseName) -> str:
        """Return where a lease is. Earlier versions left ended ones beside the living."""
        assert LeaseName.parse(str(name)) == name, name
        return f"{self.root}/workers/{name}" if name.living else f"{self.ended_leases}/{name}"

    @property
    def ended_leases(self) -> str:
        return f"{self.root}/workers/ended"

    def status(self, worker: str) -> str:
        assert WORKER.fullmatch(worker), worker
        return f"{self.root}/status/{worker}.json"

    def events(self, worker: str) -> str:
        assert WORKER.fullmatch(worker), worker
        return f"{self.root}/events/{worker}.jsonl"

    def checksums(self, worker: str | None = None) -> str:
        """Return the file of a worker's checksums, or the directory, made with the first file."""
        assert worker is None or WORKER.fullmatch(worker), worker
        return f"{self.root}/checksums" + (f"/{worker}.jsonl" if worker else "")

    # ---- what claims leave behind ----

    def output(self, id: str, suffix: str) -> str:
        assert ID.fullmatch(id) and SUFFIX.fullmatch(suffix), (id, suffix)
        return f"{self.root}/outputs/{id}{suffix}"

    def scratch(self, worker: str) -> str:
        """Return the private directory where `worker` writes outputs before they are published."""
        assert WORKER.fullmatch(worker), worker
        return f"{self.root}/outputs/.{worker}"

    def unpublished(self, worker: str, id: str, returns: int, suffix: str) -> str:
        """Return where one run of a claim writes its output; `returns` differs in every run.

        So a process that an earlier run left behind cannot write into this run's output.
        """
        assert ID.fullmatch(id) and SUFFIX.fullmatch(suffix), (id, suffix)
        return f"{self.scratch(worker)}/{id}.r{returns}{suffix}"

    def error(self, id: str, attempt: int) -> str:
        assert ID.fullmatch(id), id
        return f"{self.root}/errors/{id}.a{attempt}.json"

    def vain_run(self, id: str, returns: int) -> str:
        """Return where it is recorded why a claim was put back from a run that saved nothing."""
        assert ID.fullmatch(id), id
        return f"{self.root}/errors/{id}.r{returns}.json"

    def partial(self, id: str) -> str:
        assert ID.fullmatch(id), id
        return f"{self.root}/partial/{id}"

    def code(self, name: str | None = None) -> str:
        """Return where a file that plans need is kept, or the directory, made with the first."""
        assert name is None or CHECKPOINT.fullmatch(name), name
        return f"{self.root}/code" + (f"/{name}" if name else "")

    @property
    def set_aside(self) -> str:
        return f"{self.root}/set-aside"

    def order(self, order: str, target: str | None = None) -> str:
        text = order_name(order, target)
        assert ORDER.fullmatch(text), text
        return f"{self.root}/control/{text}"
