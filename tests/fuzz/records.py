"""Every JSON file of a pool that decides something: a typed error, or facts that make sense."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import cache

from fsqueue.broadcast.broadcast import find_broadcast
from fsqueue.history.failures import failed_attempts, worker_log
from fsqueue.monitor.locate import find
from fsqueue.pool import claims
from fsqueue.pool.claims import Claim
from fsqueue.pool.inbox import inbox_of
from fsqueue.pool.layout import State
from fsqueue.pool.leases import Observer, look_at_process, proof_of_life
from fsqueue.pool.names import ClaimName, LeaseName
from fsqueue.pool.settings import open_pool, read_spool
from fsqueue.slurm.allocation import Job
from tests.fuzz.sandbox import ME, is_usable, pick, pool, put, spool, typed_errors_only

NAME = ClaimName("in-abc", "command", 9, owner=ME)
CLAIM = Claim("command", "gpu0", {"argv": ["cat"]}, {"input": "/x"}, {"inputs": 1})


def _settings(data: bytes) -> None:
    path = pool().settings
    good = _good_settings()
    try:
        put(path, data)
        found = open_pool(pool().root)
        assert is_usable(found.lease_s) and found.lease_s > 0
        assert found.attempts_max >= 1 and isinstance(found.id, str)
    finally:
        put(path, good)


@cache
def _good_settings() -> bytes:
    with open(pool().settings, "rb") as file:
        return file.read()


def _spool(data: bytes) -> None:
    path = pool().spool_file(spool())
    put(path, data)
    found = read_spool(pool(), spool())
    assert is_usable(found.weight) and found.weight > 0
    assert isinstance(found.model, str) and isinstance(found.why, str)


def _claim(data: bytes) -> None:
    put(pool().owned(State.RUNNING, NAME), data)
    found = claims.read_claim(pool(), NAME)
    assert isinstance(found.options, dict) and isinstance(found.payload, dict)
    assert all(type(count) is int and is_usable(count) for count in found.measures.values())
    put(pool().owned(State.RUNNING, NAME), found.encode(NAME))
    assert claims.read_claim(pool(), NAME) == found


def _lease(data: bytes) -> None:
    lease = LeaseName(ME, beat=1)
    put(pool().lease(lease), data)
    observer = Observer(pool())
    observer.look([ME])
    facts = observer.facts(ME)
    look_at_process(facts)
    observer.process(ME)
    job = Job.of(facts)
    assert job is None or (job.name and not job.name.startswith("-"))
    os.unlink(pool().lease(lease))


def _broadcast(data: bytes) -> None:
    root = inbox_of(pool()).root
    os.makedirs(root, exist_ok=True)
    put(f"{root}/x-1.json", data)
    find_broadcast(pool(), "last").outcome()


def _error(data: bytes) -> None:
    put(pool().error("in-abc", 0), data)
    with redirect_stdout(io.StringIO()) as shown:
        for attempt in failed_attempts(pool(), "in-abc"):
            print(attempt.worker, attempt.error, attempt.at)
            print("\n".join(attempt.output_lines))
            worker_log(pool(), attempt)
        json.dumps(find(pool(), "in-abc").errors)
    assert all(line.isprintable() for line in shown.getvalue().splitlines())


READERS: tuple[Callable[[bytes], None], ...] = (
    _settings,
    _spool,
    _claim,
    _lease,
    _broadcast,
    _error,
)
SEEDS = (
    b'\x00{"format": 1, "id": "x", "created": "y", "lease_s": 30, "attempts_max": 3}',
    b'\x01{"name": "gpu0", "model": "RTX 3090", "weight": 1.0, "why": "given"}',
    b"\x02" + CLAIM.encode(NAME),
    b"\x03" + repr(proof_of_life()).replace("'", '"').encode(),
    b'\x03{"slurm_array_job_id": "17", "slurm_array_task_id": "3", "slurm_restart_count": "1"}',
    b'\x04{"at": 1.0, "job_type": "warmup", "workers": [{"worker_id": "a", "claim": "x-1-0", '
    b'"status": "accepted"}]}',
    b'\x05{"id": "in-abc", "attempt": 0, "worker": "a", "at": 1.0, "error": "no", '
    b'"detail": "x\\ny"}',
)


def run(data: bytes) -> None:
    """Let the first byte choose the file, and the rest be its content."""
    chosen, data = pick(data, len(READERS))
    with typed_errors_only():
        READERS[chosen](data)
