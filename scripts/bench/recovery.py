#!/usr/bin/env python3
"""Measure from the SIGKILL of a worker to the moment when its claim runs again at another.

    scripts/bench/recovery.py                          leases of 3, 10 and 30 s; needs root
    scripts/bench/recovery.py --lease 3 --rounds 5

On the same host another worker can prove at once that the process is gone, when it looks: an idle
one looks at every --steal-interval (3 s). For another host the lease has to run out. That host is a
own UTS namespace, whose lease file has another boot id, like that of another machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from fsqueue.pool.layout import State
from fsqueue.pool.settings import PoolDirectory
from scripts.bench.tables import parser, place, table, write_json
from tests.support.planning import FOREVER, make_inputs, names_in, plan_command
from tests.support.processes import FSQUEUE, environment, wait_for

ELSEWHERE = (
    "import sys; from fsqueue import leases; leases._boot_id = lambda: 'of another machine';"
    "from fsqueue.cli import main; sys.argv[0] = 'fsqueue'; main()"
)
"""A worker whose lease file says that it runs on another machine."""


def start(pool: PoolDirectory, *, elsewhere: bool) -> subprocess.Popen[bytes]:
    """Start a worker, here or as if on another host."""
    words = ["work", pool.root, "--spool", "cpu0", "--linger", "1h"]
    argv = [*FSQUEUE, *words]
    if elsewhere:
        apart = ["unshare", "--uts", "sh", "-c", 'hostname elsewhere && exec "$@"', "sh"]
        argv = [*apart, sys.executable, "-c", ELSEWHERE, *words]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(
        argv, env=environment(), stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True
    )


def owner(pool: PoolDirectory) -> str:
    """Return the worker that runs the claim, "" if there is none."""
    return next((name.owner or "" for name in names_in(pool, State.RUNNING)), "")


def one_kill(directory: Path, lease_s: float, *, elsewhere: bool) -> float:
    """Kill the worker that runs the only claim; return the seconds until another runs it."""
    directory.mkdir(parents=True)
    inputs = make_inputs(directory / "in", 1)
    pool = plan_command(directory / "pool", inputs, FOREVER, lease_s=lease_s, attempts=9)
    victim = start(pool, elsewhere=elsewhere)
    first = wait_for(lambda: owner(pool), "the claim to run")
    heir = start(pool, elsewhere=False)
    status = Path(pool.directory("status"))
    wait_for(lambda: len(list(status.glob("*.json"))) > 1, "the second worker")
    time.sleep(lease_s / 2)  # so that it has seen the other beat, as it would have in a real pool
    assert _host(pool, first) == ("elsewhere" if elsewhere else os.uname().nodename)
    os.killpg(victim.pid, signal.SIGKILL)
    victim.wait()
    begun = time.monotonic()
    wait_for(lambda: owner(pool) not in ("", first), "its heir", deadline_s=5 * lease_s + 30)
    took = time.monotonic() - begun
    heir.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    os.killpg(heir.pid, signal.SIGKILL)
    heir.wait()
    return took


def _host(pool: PoolDirectory, worker: str) -> str:
    lease = next(Path(pool.directory("workers")).glob(f"{worker}.b*"))
    return str(json.loads(lease.read_text())["host"])


def measure(given: argparse.Namespace) -> list[dict[str, object]]:
    """Kill a worker for each place, lease and round."""
    directory, figures = place(given), []
    for lease_s in given.lease:
        for elsewhere in (False, True):
            seconds = [
                one_kill(
                    directory / f"{lease_s}-{elsewhere}-{number}", lease_s, elsewhere=elsewhere
                )
                for number in range(given.rounds)
            ]
            where = "another host" if elsewhere else "same host"
            figures.append({"lease_s": lease_s, "victim": where, "seconds": seconds})
    shutil.rmtree(directory, ignore_errors=True)
    return figures


def main() -> None:
    """Measure, and print the table."""
    options = parser(__doc__)
    options.add_argument("--lease", type=float, nargs="+", default=[3.0, 10.0, 30.0])
    options.add_argument("--rounds", type=int, default=3)
    given = options.parse_args()
    figures = measure(given)
    rows = []
    for each in figures:
        seconds, lease_s = each["seconds"], each["lease_s"]
        middle = statistics.median(seconds)  # type: ignore[type-var]
        rows.append((f"{lease_s:g}", each["victim"], f"{middle:.1f}", f"{max(seconds):.1f}",
                     f"{middle / lease_s:.2f}"))  # fmt: skip
    table(["lease s", "the dead worker's place", "s, median", "worst", "x lease"], rows)
    write_json(given, "recovery", figures)


if __name__ == "__main__":
    main()
