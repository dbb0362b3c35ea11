"""Count what one worker's whole life costs a file server, in pools that are large in some way."""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from fsqueue.handler import Handler
from fsqueue.pool.leases import BEATS_PER_LEASE, LeaseName, proof_of_life
from fsqueue.pool.settings import LEASE_S, PoolDirectory
from fsqueue.records.status import Status
from tests.support.handlers import install_handler
from tests.support.planning import make_inputs, plan
from tests.support.processes import FSQUEUE
from tests.support.strace import NOOP, calls_of, put_spools

CLAIMS = 300


def operations_of_a_life(
    directory: Path, *, workers: int = 10, left: int = 0, spools: int = 10
) -> Counter[str]:
    """Return the calls of a worker that does all claims of its spool, and leaves.

    Beside so many workers that live, on other hosts; after so many that left; in a pool with so
    many spools. `-f` follows its guardian, too.
    """
    handler = Handler()
    handler.name = "noop"
    inputs = make_inputs(directory / "in", CLAIMS)
    pool, _ = plan(directory / "pool", handler, [*inputs], {})
    put_spools(pool, [f"cpu{number}" for number in range(1, spools)])
    for number in range(left):
        Path(pool.lease(LeaseName(f"gone-{number}-aaaaaa"))).touch()
    env = install_handler(directory / "site", "noop", NOOP)
    argv = [*FSQUEUE, "work", pool.root, "--spool", "cpu0"]
    with _living(pool, workers):
        calls = calls_of(argv, pool, directory / "strace", env=env)
    return Counter(name for name, _ in calls)


@contextmanager
def _living(pool: PoolDirectory, count: int) -> Iterator[None]:
    """Let so many workers of another host live, idle: they renew their leases."""
    names = [LeaseName(f"elsewhere-{number}-aaaaaa", 0) for number in range(count)]
    facts = json.dumps(proof_of_life() | {"host": "elsewhere", "boot": "another"})
    for name in names:
        Path(pool.lease(name)).write_text(facts)
        status = asdict(Status(name.worker, spool="cpu1", state="idle"))
        Path(pool.status(name.worker)).write_text(json.dumps(status, default=list))
    ended = threading.Event()

    def renew() -> None:
        beats = names
        while not ended.wait(LEASE_S / BEATS_PER_LEASE):
            following = [name.following() for name in beats]
            for before, after in zip(beats, following, strict=True):
                os.rename(pool.lease(before), pool.lease(after))
            beats = following

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
