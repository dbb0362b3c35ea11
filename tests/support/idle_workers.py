"""Run idle workers of every kind, and count their operations on the file server."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

from fsqueue.pool.claims import waiting_name
from fsqueue.pool.inbox import address
from fsqueue.pool.settings import PoolDirectory
from fsqueue.worker.backoff import WAIT_INTERVALS
from tests.support.pools import ManualWorker, make_pool
from tests.support.processes import fsqueue, wait_for
from tests.support.strace import TracedWorker

INTERVAL_S, LEASE_S = 3.0, 30.0
"""The defaults. All that an idle worker does depends on one of the two, so with a tenth of both it
costs ten times as much per second."""
PERIODS = 6
"""The length of the span, in longest waits."""


class IdleWorkers:
    """Idle workers, each with its own pool, counted over the same span of time."""

    def __init__(self, directory: Path, faster: float = 1.0) -> None:
        self.directory = directory
        self.faster = faster
        self.lease_s = LEASE_S / faster
        self.idlers: dict[str, TracedWorker] = {}
        self.beating: list[ManualWorker] = []

    def pool(self, name: str, *inputs: str, spools: int = 1) -> PoolDirectory:
        """Make a pool in which only these inputs wait."""
        root = self.directory / name
        return make_pool(root, *inputs, weights=[1.0] * spools, lease_s=self.lease_s)

    def idle(self, name: str, pool: PoolDirectory, *words: str) -> None:
        """Start a worker in a pool."""
        interval = ["--steal-interval", f"{INTERVAL_S / self.faster}"]
        log = self.directory / f"{name}.strace"
        self.idlers[name] = TracedWorker(pool, log, "--spool", "gpu0", *interval, *words)

    def count(self) -> dict[str, tuple[float, Counter[str]]]:
        """Return each quiet worker's operations per second, converted to the default intervals."""
        begun = [
            wait_for(idler.calls, f"{name} to begin")[0][0] for name, idler in self.idlers.items()
        ]
        longest_s = WAIT_INTERVALS[-1] * INTERVAL_S / self.faster
        begin = max(begun) + 2.5 * longest_s
        end = begin + PERIODS * longest_s
        wait_for(lambda: time.time() > end, "the span to pass", deadline_s=end - time.time() + 5)
        counts = {name: idler.counts(begin, end) for name, idler in self.idlers.items()}
        per_s = {
            name: count.total() / (end - begin) / self.faster for name, count in counts.items()
        }
        return {name: (per_s[name], count) for name, count in counts.items()}

    def end(self) -> None:
        """Kill the workers."""
        for idler in self.idlers.values():
            idler.end()
        for hand in self.beating:
            hand.beat.stop()


def start_idle_workers(scene: IdleWorkers) -> None:
    """Start idle workers of every kind."""
    scene.idle("kept alive", scene.pool("kept alive"), "--keep-alive")
    scene.idle("lingering", scene.pool("lingering"), "--linger", "1h")
    scene.idle("of 64 spools", scene.pool("of 64 spools", spools=64), "--keep-alive")

    paused = scene.pool("paused", "a.30")
    assert fsqueue("drain", paused.root, "--pause").returncode == 0
    scene.idle("paused", paused)

    beside = scene.pool("beside a running claim", "a.30")
    other = ManualWorker(beside)
    other.take()
    other.beat.start()
    scene.beating.append(other)
    scene.idle("beside a running claim", beside, "--keep-alive")

    addressed = scene.pool("where there was a broadcast")
    gone = ManualWorker(addressed)
    address(addressed, gone.id, waiting_name("evict-1", "evict", 1), b"{}")
    gone.leave()
    scene.idle("where there was a broadcast", addressed, "--keep-alive")
