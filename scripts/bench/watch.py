#!/usr/bin/env python3
"""Print what watching costs: one refresh of a large pool, and ten watchers beside busy workers.

    scripts/bench/watch.py refresh                 1,000,000 done, 10,000 waiting, 64 workers
    scripts/bench/watch.py refresh --done 10000
    scripts/bench/watch.py watchers --rounds 6     the same work with and without 10 watchers
    scripts/bench/watch.py --json FILE refresh     write the figures there, too

`refresh` prints CPU per look and frame; exit status 1 over 100 ms, or if done/ was listed.
`watchers` runs the same claims again and again, in turn with ten `fsqueue watch` beside the workers
and with none, and compares what the *workers* needed: their CPU, and, where every process has a CPU
of its own, the time.
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from rich.console import Console

from fsqueue.dashboard import View, render
from fsqueue.monitor.snapshot import Reader
from fsqueue.pool.settings import PoolDirectory
from fsqueue.storage import atomic
from scripts.bench.tables import parser, place, write_json
from tests.support.large_pool import make_large_pool, put_status
from tests.support.planning import counts, make_inputs, plan_command
from tests.support.processes import FSQUEUE, environment

GOAL_MS = 100.0
LOOKS = 20
BUSY = (
    "sh",
    "-c",
    "i=0; while [ $i -lt 150000 ]; do i=$((i+1)); done; echo $i $1",
    "sh",
    "{input}",
)
"""A program that needs some 0.1 s of CPU, and touches nothing."""


def main() -> int:
    """Measure; return the exit status."""
    options = parser(__doc__)
    kinds = options.add_subparsers(dest="kind", required=True)
    refresh = kinds.add_parser("refresh", help="CPU of one refresh of a large pool")
    refresh.add_argument("--done", type=int, default=1_000_000)
    refresh.add_argument("--waiting", type=int, default=10_000)
    refresh.add_argument("--workers", type=int, default=64)
    beside = kinds.add_parser("watchers", help="what ten watchers cost the workers")
    beside.add_argument("--rounds", type=int, default=6)
    beside.add_argument("--watchers", type=int, default=10)
    beside.add_argument("--workers", type=int, default=2)
    beside.add_argument("--claims", type=int, default=400)
    given = options.parse_args()
    directory = place(given)
    try:
        return (
            measure_refresh(directory, given)
            if given.kind == "refresh"
            else compare(directory, given)
        )
    finally:
        shutil.rmtree(directory)


# ---- one refresh ----


def measure_refresh(directory: Path, given: argparse.Namespace) -> int:
    """Look at a pool that changes a little between looks, as it does while 64 GPUs work."""
    pool = make_large_pool(
        directory / "pool", done=given.done, waiting=given.waiting, workers=given.workers
    )
    listed: list[str] = []
    gather = atomic.gather
    atomic.gather = lambda path, into: (listed.append(path), gather(path, into))[1]  # type: ignore[func-returns-value]
    reader = Reader(pool)
    looks = [one_refresh(pool, reader) for _ in range(LOOKS)]
    first, later = looks[0], sorted(looks[1:])
    count = reader.snapshot().count
    assert (count.done.claims, count.waiting.claims) == (given.done, given.waiting), count
    median, worst = statistics.median(later), later[-1]
    print(
        f"{given.done:,} done, {given.waiting:,} waiting, {given.workers} workers: "
        f"first look {first:.0f} ms, then median {median:.1f} ms, worst of {len(later)} "
        f"{worst:.1f} ms of CPU, frame included; peak memory {peak_mib()} MiB"
    )
    facts = {"first_ms": first, "median_ms": median, "worst_ms": worst, "peak_mib": peak_mib()}
    write_json(given, "watch refresh", facts | {"done": given.done, "waiting": given.waiting})
    if f"{pool.root}/done" in listed:
        print("done/ was listed")
        return 1
    return int(median > GOAL_MS)


def one_refresh(pool: PoolDirectory, reader: Reader) -> float:
    """Let every worker report anew, and return the CPU of the look and its frame, in ms."""
    for worker in sorted(os.listdir(pool.directory("status"))):
        name = worker.removesuffix(".json")
        put_status(pool, name, f"gpu{name.partition('-')[0].removeprefix('node')}")
    begun = time.process_time()
    frame = render(reader.snapshot(), View(), 120, 40)
    Console(file=io.StringIO(), width=120, force_terminal=True).print(frame)
    return 1000 * (time.process_time() - begun)


def peak_mib() -> int:
    """Return the largest this process has been."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


# ---- ten watchers ----


def compare(directory: Path, given: argparse.Namespace) -> int:
    """Run the same work in turn with and without watchers; print what the workers needed."""
    print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, {given.workers} workers")
    print("round  watchers  worker CPU s  wall s  watcher CPU s/min")
    cpu: dict[int, list[float]] = {0: [], given.watchers: []}
    wall: dict[int, list[float]] = {0: [], given.watchers: []}
    for number in range(given.rounds):
        order = sorted(cpu, reverse=bool(number % 2))
        for watchers in order:
            worked, took, watched = one_run(directory / f"{number}-{watchers}", watchers, given)
            cpu[watchers].append(worked)
            wall[watchers].append(took)
            print(
                f"{number:>5}  {watchers:>8}  {worked:12.2f}  {took:6.2f}  {watched:10.2f}",
                flush=True,
            )
    slower = paired(cpu[given.watchers], cpu[0])
    longer = paired(wall[given.watchers], wall[0])
    print(f"with {given.watchers} watchers: CPU of the workers {slower}, wall time {longer}")
    write_json(given, "watch watchers", {"cpu_s": cpu, "wall_s": wall})
    return 0


def paired(some: list[float], none: list[float]) -> str:
    """Return the median of the ratios of each round, and their spread."""
    ratios = sorted(100 * (a / b - 1) for a, b in zip(some, none, strict=True))
    return f"{statistics.median(ratios):+.1f} % (from {ratios[0]:+.1f} to {ratios[-1]:+.1f})"


def one_run(root: Path, watchers: int, given: argparse.Namespace) -> tuple[float, float, float]:
    """Return the CPU of the workers and their programs, the wall time, and CPU of the watchers."""
    inputs = make_inputs(root / "in", given.claims)
    spools = [f"cpu{number}" for number in range(given.workers)]
    pool = plan_command(root / "pool", inputs, BUSY, spools=spools)
    watching = [start(["watch", pool.root]) for _ in range(watchers)]
    if watchers:
        time.sleep(3.0)  # until all of them have started; not part of what is measured
    begun = time.monotonic()
    working = [start(["work", pool.root, "--spool", spool]) for spool in spools]
    worked = sum(cpu_of(worker) for worker in working)
    took = time.monotonic() - begun
    watched = sum(cpu_of(watcher) for watcher in watching)
    assert counts(pool) == {"done": given.claims}, counts(pool)
    shutil.rmtree(root)
    return worked, took, 60 * watched / (took + 3.0)


def start(words: list[str]) -> subprocess.Popen[bytes]:
    """Start fsqueue, silent."""
    quiet = subprocess.DEVNULL
    return subprocess.Popen([*FSQUEUE, *words], env=environment(), stdout=quiet, stderr=quiet)


def cpu_of(process: subprocess.Popen[bytes]) -> float:
    """Wait for a process to end; return the CPU that it and what it waited for used."""
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, process.args
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    sys.exit(main())
