#!/usr/bin/env python3
"""Measure how long fsqueue takes to start, beside a Python that does nothing.

    scripts/bench/startup.py                 every command ten times, in turns; the best of each

CPU is user and system time of the whole process; the goal is 0.2 s. `work` is a worker of an empty
pool: it enlists, looks twice with 0.3 s of sleep between, and leaves. Exit status 1 over the goal.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from fsqueue.pool.settings import Spool, add_spool, create_pool
from scripts.bench.tables import parser, place, table, write_json

GOAL_S = 0.2


def once(argv: list[str]) -> tuple[float, float]:
    """Run a command; return its CPU and its time."""
    quiet = subprocess.DEVNULL
    begun = time.monotonic()
    env = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(argv, stdin=quiet, stdout=quiet, stderr=quiet, env=env)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, argv
    return used.ru_utime + used.ru_stime, time.monotonic() - begun


def main() -> int:
    """Measure; return the exit status."""
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=10)
    given = options.parse_args()
    directory = place(given)
    pool = create_pool(str(directory / "pool"))
    add_spool(pool, Spool("cpu0", "cpu", 1.0))
    fsqueue = [sys.executable, "-m", "fsqueue"]
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "import fsqueue": [sys.executable, "-c", "import fsqueue"],
        "fsqueue --help": [*fsqueue, "--help"],
        "fsqueue status": [*fsqueue, "status", pool.root],
        "fsqueue work": [*fsqueue, "work", pool.root, "--spool", "cpu0"],
    }
    best = dict.fromkeys(commands, (9e9, 9e9))
    for _ in range(given.rounds):
        for name, argv in commands.items():
            cpu, wall = once(argv)
            best[name] = min(best[name][0], cpu), min(best[name][1], wall)
    bare = best["python -c pass"][0]
    rows = [(n, f"{c:.3f}", f"{w:.3f}", f"{c / bare:.1f}") for n, (c, w) in best.items()]
    table(["command", "CPU s", "s", "x python"], rows)
    write_json(given, "startup", {n: {"cpu_s": c, "wall_s": w} for n, (c, w) in best.items()})
    shutil.rmtree(directory)
    return int(any(cpu > GOAL_S for cpu, _ in best.values()))


if __name__ == "__main__":
    sys.exit(main())
