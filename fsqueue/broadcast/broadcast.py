"""Address one copy of a job to every capable worker, and collect the outcomes of the copies.

A worker is capable if its lease has not ended, its status is recent, it is of tier GPU or CPU, and
it has the required capability. A copy is *accepted* once it is in its worker's inbox; the worker
runs it after its current claim, and no other worker takes it. A copy's payload says that it is
`copy` of `copies`, or with scatter, `shard` of `shards`.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Final

from fsqueue.broadcast.jobs import JOBS
from fsqueue.errors import FsqueueError, NotSupportedError, PoolError, UsageError
from fsqueue.handler import load_handler
from fsqueue.pool import claims
from fsqueue.pool.claims import Claim
from fsqueue.pool.inbox import address, bounce_strays, inbox_of, spool_of
from fsqueue.pool.layout import State
from fsqueue.pool.leases import Observer, Process
from fsqueue.pool.names import ClaimName, Role, new_worker_id, slug
from fsqueue.pool.requirements import Tier
from fsqueue.pool.settings import PoolDirectory
from fsqueue.records.status import WorkerState, heartbeat, read_status
from fsqueue.scheduling.score import Candidate, Need, fits
from fsqueue.storage import atomic
from fsqueue.storage.untrusted import number, read_json

LOST_S: Final = 300.0
"""A worker whose status is older than this is not addressed."""


@dataclass(frozen=True, slots=True)
class BroadcastRequest:
    """What to broadcast."""

    job_type: str
    job_data: dict[str, Any]
    required_capability: str | None = None
    scatter: bool = False


class Outcome(StrEnum):
    """What became of a copy so far."""

    REFUSED = "refused"
    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"

    @property
    def is_open(self) -> bool:
        """Whether the copy has not ended yet."""
        return self in (Outcome.WAITING, Outcome.RUNNING)


@dataclass(slots=True)
class Copy:
    """One copy: its worker, and its outcome so far."""

    worker: str
    id: str
    error: str = ""
    outcome: Outcome = Outcome.WAITING
    output: str = ""
    result: dict[str, Any] = field(default_factory=dict)
    """Its output, if that is JSON."""

    def row(self) -> dict[str, Any]:
        """Return the worker's row of the response."""
        if self.outcome is Outcome.REFUSED:
            return {"worker_id": self.worker, "status": "failed", "error": self.error}
        return {"worker_id": self.worker, "status": "accepted", "status_code": 200}


@dataclass(slots=True)
class Broadcast:
    """A broadcast and its copies."""

    id: str
    request: BroadcastRequest
    copies: list[Copy] = field(default_factory=list)

    def response(self) -> dict[str, Any]:
        """Return which workers accepted, as JSON: whatever became of their copies."""
        rows = [copy.row() for copy in self.copies]
        accepted = sum(row["status"] == "accepted" for row in rows)
        return {
            "job_type": self.request.job_type,
            "broadcasted_to": len(rows),
            "successful": accepted,
            "failed": len(rows) - accepted,
            "workers": rows,
        }

    def outcome(self) -> dict[str, Any]:
        """Return the response with every copy's outcome, and their counters added up."""
        answer = self.response() | {"broadcast_id": self.id}
        for row, copy in zip(answer["workers"], self.copies, strict=True):
            row |= {"claim": copy.id, "outcome": copy.outcome}
            row |= {"output": copy.output} if copy.output else {}
            row |= {"error": copy.error} if copy.error else {}
            row |= {"result": copy.result} if copy.result else {}
        return answer | {"totals": self.totals()}

    def totals(self) -> dict[str, int]:
        """Return the counters in the copies' results, added up."""
        total: dict[str, int] = {}
        for name, count in (pair for copy in self.copies for pair in copy.result.items()):
            if isinstance(count, int) and not isinstance(count, bool):
                total[name] = total.get(name, 0) + count
        return total


def broadcast(pool: PoolDirectory, request: BroadcastRequest) -> Broadcast:
    """Address the copies and record the response; NotSupportedError if no worker is capable."""
    options, payload, personal = _prepared(request)
    workers = capable(pool, request.required_capability)
    if not workers:
        raise NotSupportedError(
            f"no capable worker for job_type {request.job_type!r}, required_capability "
            f"{request.required_capability!r}: no living worker of tier 1 or 2 has it. See: "
            f"fsqueue services {pool.root}; start some: fsqueue work {pool.root} --keep-alive"
        )
    made = Broadcast(f"{slug(request.job_type, 30)}-{secrets.token_hex(5)}", request)
    for shard, worker in enumerate(workers):
        names = ("shard", "shards") if request.scatter else ("copy", "copies")
        part = dict(zip(names, (shard, len(workers)), strict=True))
        name = claims.waiting_name(f"{made.id}-{shard}", slug(request.job_type, 32), 1)
        claim = Claim(request.job_type, spool_of(worker), options, payload | part, {})
        copy = Copy(worker, name.id)
        made.copies.append(copy)
        try:
            address(pool, worker, name, claim.encode(name), personal=personal)
        except (OSError, FsqueueError) as error:
            copy.error, copy.outcome = str(error), Outcome.REFUSED
    record = made.outcome() | {"order": asdict(request), "at": time.time()}
    _record(pool, made.id, record)
    return made


def capable(pool: PoolDirectory, required: str | None) -> list[str]:
    """Return the workers that a broadcast is addressed to."""
    need = Need(capability=required, tier_max=Tier.CPU)
    observer = Observer(pool)
    observer.look()
    found = []
    for worker in sorted(observer.workers()):
        status = read_status(pool, worker)
        if status is None or time.time() - status.written_at > LOST_S:
            continue
        if (
            status.state in (WorkerState.STOPPED, WorkerState.FAILED)
            or observer.process(worker) is Process.GONE
        ):
            continue
        if not fits(Candidate.read(asdict(status) | heartbeat(status)), need):
            found.append(worker)
    return found


def follow(
    pool: PoolDirectory, made: Broadcast, *, sleep: Callable[[], None], give_up: float
) -> bool:
    """Wait until every accepted copy has ended, or `give_up` (monotonic); return whether all have.

    Copies of workers that left or died are ended here too: there may be no other process to do it.
    """
    me = new_worker_id(Role.BROADCAST)
    while True:
        bounce_strays(pool, me)
        open_copies = [copy for copy in made.copies if copy.outcome.is_open]
        update_outcomes(pool, open_copies)
        if not any(copy.outcome.is_open for copy in open_copies):
            return True
        if time.monotonic() > give_up:
            return False
        sleep()


def find_broadcast(pool: PoolDirectory, id: str) -> Broadcast:
    """Return an earlier broadcast as it is now, `last` for the latest. UsageError if none."""
    root = inbox_of(pool).root
    try:
        ids = [name[:-5] for name in atomic.names(root) if name.endswith(".json")]
    except PoolError:
        ids = []
    records = {each: facts for each in ids if (facts := _read(f"{root}/{each}.json"))}
    if id == "last" and records:
        id = max(records, key=lambda each: number(records[each].get("at")) or 0.0)
    if id not in records:
        known = ", ".join(sorted(records)[-5:]) or "none"
        raise UsageError(f"{pool.root} has no broadcast {id!r}; it has: {known}.")
    found = records[id].get("workers")
    rows = [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []
    made = Broadcast(id, BroadcastRequest(str(records[id].get("job_type")), {}))
    for row in rows:
        refused = row.get("status") == "failed"
        made.copies.append(
            Copy(
                str(row.get("worker_id")),
                str(row.get("claim")),
                str(row.get("error", "")),
                Outcome.REFUSED if refused else Outcome.WAITING,
            )
        )
    update_outcomes(pool, [copy for copy in made.copies if copy.outcome is Outcome.WAITING])
    return made


def _read(path: str) -> dict[str, Any]:
    try:
        return read_json(path, patience_s=0.0)
    except (OSError, PoolError):
        return {}  # damaged, or being removed: it is only for display


def update_outcomes(pool: PoolDirectory, copies: list[Copy]) -> None:
    """Update the outcomes of copies."""
    inbox = inbox_of(pool)
    try:
        # In the order in which claims move, so that a moving claim is seen where it arrives.
        owned = {
            state: {name.id: name for name in claims.owned(inbox, state)}
            for state in (State.RUNNING, State.FAILED, State.DONE)
        }
    except PoolError:
        return  # no copy was accepted, or the inbox was removed
    for copy in copies:
        for state, names in owned.items():
            if copy.id in names:
                copy.outcome = Outcome(state.value)
                if state is State.FAILED:
                    copy.error = _error(inbox, names[copy.id])
        if copy.outcome is Outcome.DONE:
            outputs = inbox.directory("outputs")
            found = (text for text in atomic.names(outputs) if text.startswith(copy.id))
            copy.output = next((f"{outputs}/{text}" for text in found), "")
            copy.result = _read(copy.output) if copy.output.endswith(".json") else {}


def _error(inbox: PoolDirectory, name: ClaimName) -> str:
    try:
        record = read_json(inbox.error(name.id, name.attempt), patience_s=0.0)
        return str(record.get("error"))
    except (OSError, PoolError):
        return "no record in inbox/errors/"


def _prepared(request: BroadcastRequest) -> tuple[dict[str, Any], dict[str, Any], bool]:
    """Return a copy's options, its payload, and whether it is personal.

    Raises UsageError if no handler is called like the job.
    """
    if request.job_type in JOBS:
        return {}, request.job_data, False
    handler = load_handler(request.job_type)
    options = {option.name: option.default for option in handler.options}
    given = request.job_data.get("options", {})
    if not isinstance(given, dict):
        raise UsageError('"options" in --job-data is not a JSON object.')
    payload = {key: value for key, value in request.job_data.items() if key != "options"}
    return handler.prepare(options | given), handler.prepare_payload(payload), handler.personal


def _record(pool: PoolDirectory, id: str, facts: dict[str, Any]) -> None:
    try:
        atomic.publish(f"{inbox_of(pool).root}/{id}.json", json.dumps(facts, indent=1).encode())
    except OSError:
        pass  # no copy could be addressed, as the response says
