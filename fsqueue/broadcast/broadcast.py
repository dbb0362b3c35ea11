"""Address one copy of a job to every capable worker, and collect what became of the copies.

Capable is who lives, was heard of lately, is of tier GPU or CPU, and has the required capability. A
copy is *accepted* when it lies in its worker's inbox. The worker runs it after the claim that it
runs; nobody steals it. Each says which `copy` of how many `copies` it is; with scatter, that it is
part `shard` of `shards`.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
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
from fsqueue.pool.status import heartbeat, read_status
from fsqueue.pool.untrusted import number, read_json
from fsqueue.scheduling.score import Candidate, Need, fits
from fsqueue.storage import atomic

LOST_S: Final = 300.0
"""A worker that has not written its status for so long is not addressed."""


@dataclass(frozen=True, slots=True)
class BroadcastRequest:
    """What to broadcast."""

    job_type: str
    job_data: dict[str, Any]
    required_capability: str | None = None
    scatter: bool = False


@dataclass(slots=True)
class Copy:
    """One copy: whose it is, whether it was accepted, and in the end what became of it."""

    worker: str
    id: str
    error: str = ""
    outcome: str = "waiting"
    output: str = ""
    result: dict[str, Any] = field(default_factory=dict)
    """What its output says, where that is JSON."""

    def row(self) -> dict[str, Any]:
        """Return the worker's row of the response."""
        if self.error and self.outcome == "refused":
            return {"worker_id": self.worker, "status": "failed", "error": self.error}
        return {"worker_id": self.worker, "status": "accepted", "status_code": 200}


@dataclass(slots=True)
class Broadcast:
    """A broadcast that was made."""

    id: str
    order: BroadcastRequest
    copies: list[Copy] = field(default_factory=list)

    def response(self) -> dict[str, Any]:
        """Return who accepted, as JSON: acceptance alone, not what became of it."""
        rows = [copy.row() for copy in self.copies]
        accepted = sum(row["status"] == "accepted" for row in rows)
        return {
            "job_type": self.order.job_type,
            "broadcasted_to": len(rows),
            "successful": accepted,
            "failed": len(rows) - accepted,
            "workers": rows,
        }

    def outcome(self) -> dict[str, Any]:
        """Return the response, what became of every copy, and their counts added up."""
        answer = self.response() | {"broadcast_id": self.id}
        for row, copy in zip(answer["workers"], self.copies, strict=True):
            row |= {"claim": copy.id, "outcome": copy.outcome}
            row |= {"output": copy.output} if copy.output else {}
            row |= {"error": copy.error} if copy.error else {}
            row |= {"result": copy.result} if copy.result else {}
        return answer | {"totals": self.totals()}

    def totals(self) -> dict[str, int]:
        """Return the counts in the copies' results, added up."""
        total: dict[str, int] = {}
        for name, count in (pair for copy in self.copies for pair in copy.result.items()):
            if isinstance(count, int) and not isinstance(count, bool):
                total[name] = total.get(name, 0) + count
        return total


def broadcast(pool: PoolDirectory, order: BroadcastRequest) -> Broadcast:
    """Address the copies and keep the response; NotSupportedError if nobody is capable."""
    options, payload, personal = _prepared(order)
    workers = capable(pool, order.required_capability)
    if not workers:
        raise NotSupportedError(
            f"no capable worker for job_type {order.job_type!r}, required_capability "
            f"{order.required_capability!r}: none that lives is of tier 1 or 2 and has it. See: "
            f"fsqueue services {pool.root}; start some: fsqueue work {pool.root} --keep-alive"
        )
    made = Broadcast(f"{slug(order.job_type, 30)}-{secrets.token_hex(5)}", order)
    for shard, worker in enumerate(workers):
        names = ("shard", "shards") if order.scatter else ("copy", "copies")
        part = dict(zip(names, (shard, len(workers)), strict=True))
        name = claims.waiting_name(f"{made.id}-{shard}", slug(order.job_type, 32), 1)
        claim = Claim(order.job_type, spool_of(worker), options, payload | part, {})
        copy = Copy(worker, name.id)
        made.copies.append(copy)
        try:
            address(pool, worker, name, claim.encode(name), personal=personal)
        except (OSError, FsqueueError) as error:
            copy.error, copy.outcome = str(error), "refused"
    record = made.outcome() | {"order": asdict(order), "at": time.time()}
    _record(pool, made.id, record)
    return made


def capable(pool: PoolDirectory, required: str | None) -> list[str]:
    """Return the workers that a broadcast addresses."""
    need = Need(capability=required, tier_max=Tier.CPU)
    observer = Observer(pool)
    observer.look()
    found = []
    for worker in sorted(observer.workers()):
        status = read_status(pool, worker)
        if status is None or time.time() - status.written_at > LOST_S:
            continue
        if status.state in ("stopped", "failed") or observer.process(worker) is Process.GONE:
            continue
        if not fits(Candidate.read(asdict(status) | heartbeat(status)), need):
            found.append(worker)
    return found


def follow(
    pool: PoolDirectory, made: Broadcast, *, sleep: Callable[[], None], give_up: float
) -> bool:
    """Wait until every accepted copy is done or failed, or `give_up` (monotonic); say if all is.

    Copies of workers that left or died are ended here too: perhaps nobody else is left to do it.
    """
    me = new_worker_id(Role.BROADCAST)
    while True:
        bounce_strays(pool, me)
        open_copies = [copy for copy in made.copies if copy.outcome in ("waiting", "running")]
        look(pool, open_copies)
        if not any(copy.outcome in ("waiting", "running") for copy in open_copies):
            return True
        if time.monotonic() > give_up:
            return False
        sleep()


def made_before(pool: PoolDirectory, id: str) -> Broadcast:
    """Return a broadcast that was made, as it stands now; `last` is the latest. UsageError."""
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
    order = BroadcastRequest(str(records[id].get("job_type")), {})
    made = Broadcast(id, order)
    for row in rows:
        refused = row.get("status") == "failed"
        made.copies.append(
            Copy(
                str(row.get("worker_id")),
                str(row.get("claim")),
                str(row.get("error", "")),
                "refused" if refused else "waiting",
            )
        )
    look(pool, [copy for copy in made.copies if copy.outcome == "waiting"])
    return made


def _read(path: str) -> dict[str, Any]:
    try:
        return read_json(path, patience_s=0.0)
    except (OSError, PoolError):
        return {}  # damaged, or being removed: only for eyes


def look(pool: PoolDirectory, copies: list[Copy]) -> None:
    """Note what became of copies."""
    inbox = inbox_of(pool)
    try:
        # In the order in which claims move, so that one on its way is seen where it arrives.
        owned = {
            state: {name.id: name for name in claims.owned(inbox, state)}
            for state in (State.RUNNING, State.FAILED, State.DONE)
        }
    except PoolError:
        return  # no copy was accepted, or somebody removed the inbox
    for copy in copies:
        for state, names in owned.items():
            if copy.id in names:
                copy.outcome = state.value
                if state is State.FAILED:
                    copy.error = _error(inbox, names[copy.id])
        if copy.outcome == "done":
            made = (t for t in atomic.names(inbox.directory("outputs")) if t.startswith(copy.id))
            copy.output = next((f"{inbox.directory('outputs')}/{text}" for text in made), "")
            copy.result = _read(copy.output) if copy.output.endswith(".json") else {}


def _error(inbox: PoolDirectory, name: ClaimName) -> str:
    try:
        record = read_json(inbox.error(name.id, name.attempt), patience_s=0.0)
        return str(record.get("error"))
    except (OSError, PoolError):
        return "no record in inbox/errors/"


def _prepared(order: BroadcastRequest) -> tuple[dict[str, Any], dict[str, Any], bool]:
    """Return a copy's options, payload, and whether it is personal. UsageError if nobody knows the
    job."""
    if order.job_type in JOBS:
        return {}, order.job_data, False
    handler = load_handler(order.job_type)
    options = {option.name: option.default for option in handler.options}
    given = order.job_data.get("options", {})
    if not isinstance(given, dict):
        raise UsageError('"options" in --job-data is not a JSON object.')
    payload = {key: value for key, value in order.job_data.items() if key != "options"}
    return handler.prepare(options | given), handler.ordered(payload), handler.personal


def _record(pool: PoolDirectory, id: str, facts: dict[str, Any]) -> None:
    try:
        atomic.publish(f"{inbox_of(pool).root}/{id}.json", json.dumps(facts, indent=1).encode())
    except OSError:
        pass  # not one copy could be addressed: the response says it all
