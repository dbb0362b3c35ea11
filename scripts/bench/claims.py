#!/usr/bin/env python3
"""Measure what a claim costs that does nothing: CPU for each, and how many in a second.

    scripts/bench/claims.py                                 10,000 claims, 1 and 4 workers, no peers
    scripts/bench/claims.py --peers                         the peers of peers.txt, side by side
    scripts/bench/claims.py --claims 1000 10000 1000000 --workers 1 2 4 8 --rounds 3

A worker of fsqueue is the real `Worker` in its own process, with a handler that is installed
as an entry point; it enlists, beats, keeps its journal and leaves. A claim of the row `published`
has an output of a few bytes, synced to disk twice. All take turns, round by round; of each the
least CPU is shown. `two-renames` is the bound: one listing, kept, and two bare renames a claim.

--peers makes a virtual environment for them in --venv, from a package index.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from fsqueue.errors import ExitStatus
from fsqueue.pool import plans
from fsqueue.pool.claims import Claim
from fsqueue.pool.names import ClaimName
from fsqueue.pool.plans import Plan, Share
from fsqueue.pool.settings import PoolDirectory, Spool, add_spool, create_pool, open_pool
from scripts.bench.peers import KILLED, QUEUES, measured
from scripts.bench.tables import parser, place, table, write_json
from tests.support.handlers import install_handler

ROOT = Path(__file__).resolve().parents[2]
HANDLERS = """
from fsqueue import Handler

class Made(Handler):
    suffix = {suffix!r}

    def run(self, work):
        {body}
"""
BOUNDS = ("two-renames", "read+journal")
QUADRATIC = {"huey file": 10_000, "litequeue": 10_000, "persistqueue ack": 10_000}
"""Peers that list or sort for every claim, and how many one can wait for."""


@dataclass(frozen=True, slots=True)
class Took:
    """What one drain took: CPU of all workers, and the time of the slowest."""

    claims: int
    cpu: float
    wall: float

    @property
    def us(self) -> float:
        return 1e6 * self.cpu / self.claims


def fill(root: Path, handler: str, count: int, spools: int) -> PoolDirectory:
    """Make a pool of no-op claims by hand, unsynced, because the planner syncs each."""
    pool = create_pool(str(root), lease_s=3600.0)
    for spool in range(spools):
        add_spool(pool, Spool(f"cpu{spool}", "cpu", 1.0))
    names = [ClaimName(f"noop-{number:07d}", "noop", 1 + number % 97) for number in range(count)]
    share = Share(count, sum(name.cost for name in names))
    head = Plan("bench", "2026-11-30", handler, ("noop",), None, share, {"cpu0": share}, {})
    rows = ((str(name), f"cpu{number % spools}") for number, name in enumerate(names))
    plans.number_plan(pool, "bench", plans.write_plan(pool, head, [], rows), 1)
    for number, name in enumerate(names):
        spool = f"cpu{number % spools}"
        data = Claim(handler, spool, {}, {}, {}).encode(name)
        Path(pool.waiting(spool, name)).write_bytes(data)
    return pool


def work(root: str, spool: str) -> None:
    """Be one worker, in the way of `peers.py drain`."""
    from fsqueue.worker.settings import WorkerSettings
    from fsqueue.worker.worker import Worker

    worker = Worker(open_pool(root), WorkerSettings(spool=spool))

    def drain() -> int:
        assert worker.run() in (ExitStatus.DONE, ExitStatus.WORK_REMAINS)  # others run the last
        return worker.status.claims_done

    for line in measured(drain):
        print(line, flush=True)


def race(argvs: list[list[str]], envs: list[Mapping[str, str]]) -> Took:
    """Let workers begin at the same time, once all are ready."""
    processes = [
        subprocess.Popen(
            argv, env=os.environ | dict(env), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )
        for argv, env in zip(argvs, envs, strict=True)
    ]  # fmt: skip
    for process in processes:
        assert process.stdout and process.stdout.readline() == "ready\n", process.args
    for process in processes:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate()[0] for process in processes]
    if not all(said):
        raise ChildProcessError(f"{argvs[0]} broke down")
    found = list(map(json.loads, said))
    claims = sum(each["claims"] for each in found)
    return Took(claims, sum(f["cpu"] for f in found), max(f["wall"] for f in found))


class Bench:
    """One file system, on which every contender drains its own queues."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.place = place(given)
        self.python = str(given.venv / "bin/python") if given.peers else sys.executable
        self.env: dict[str, str] = {}
        for name, suffix, body in (
            ("noop", None, "pass"),
            ("published", ".out", "work.output.write_bytes(b'done\\n')"),
        ):
            site = self.place / f"site-{name}"
            source = HANDLERS.format(suffix=suffix, body=body)
            os.environ |= install_handler(site, name, source)
        self._serial = itertools.count()

    def fsqueue(self, handler: str, claims: int, workers: int, spools: int) -> Took:
        pool = fill(self.place / f"{next(self._serial)}", handler, claims, spools)
        argv = [sys.executable, str(Path(__file__)), "--worker", pool.root]
        argvs = [[*argv, f"cpu{number % spools}"] for number in range(workers)]
        took = race(argvs, [{}] * workers)
        assert took.claims == claims == len(os.listdir(pool.directory("done"))), took
        return took

    def peer(self, queue: str, claims: int, workers: int) -> Took:
        root = self.place / f"{next(self._serial)}"
        root.mkdir()
        argv = [self.python, str(Path(__file__).with_name("peers.py")), queue, str(root)]
        if queue in BOUNDS:
            argv[0] = sys.executable
        quiet = subprocess.DEVNULL
        spools = [{"SPOOL": f"{number}/{workers}"} for number in range(workers)]
        env = os.environ | spools[0]
        subprocess.run(
            [*argv, "fill", str(claims)], env=env, check=True, stdout=quiet, stderr=quiet
        )
        took = race([[*argv, "drain"]] * workers, spools)
        assert took.claims >= claims, took
        return took

    def contenders(self, given: argparse.Namespace, claims: int, workers: int) -> list[str]:
        names = [*BOUNDS, "fsqueue", "fsqueue, one spool", "fsqueue, published"]
        if workers == 1:
            names.remove("fsqueue, one spool")
        if claims > 20_000:
            names.remove("fsqueue, published")
        peers = [name for name in QUEUES if name not in BOUNDS] if given.peers else []
        return names + [p for p in peers if claims <= QUADRATIC.get(p, given.peers_max)]

    def run(self, name: str, claims: int, workers: int) -> Took:
        if name == "fsqueue":
            return self.fsqueue("noop", claims, workers, workers)
        if name == "fsqueue, one spool":
            return self.fsqueue("noop", claims, workers, 1)
        if name == "fsqueue, published":
            return self.fsqueue("published", claims, workers, workers)
        return self.peer(name, claims, workers)


def make_venv(venv: Path) -> None:
    """Install the peers, if that was not done before."""
    wanted = Path(__file__).with_name("peers.txt")
    if (venv / "peers.txt").is_file() and (venv / "peers.txt").read_text() == wanted.read_text():
        return
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    pip = [venv / "bin/python", "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "-r", wanted], check=True)
    shutil.copy(wanted, venv)


def main() -> int:
    """Measure; print a table for each number of claims and workers."""
    if sys.argv[1:2] == ["--worker"]:
        work(*sys.argv[2:4])
        return 0
    options = parser(__doc__)
    options.add_argument("--claims", type=int, nargs="+", default=[10_000])
    options.add_argument("--workers", type=int, nargs="+", default=[1, 4])
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--peers", action="store_true", help="measure the peers, too")
    options.add_argument("--peers-max", type=int, default=10_000, metavar="N")
    options.add_argument("--venv", type=Path, default=ROOT / ".venv-peers")
    options.add_argument("--only", nargs="+", metavar="QUEUE", help="beside the bound and fsqueue")
    given = options.parse_args()
    if given.peers:
        make_venv(given.venv)
    bench, figures = Bench(given), []
    for claims, workers in itertools.product(given.claims, given.workers):
        names = bench.contenders(given, claims, workers)
        if given.only:
            names = ["two-renames", "fsqueue", *(name for name in names if name in given.only)]
        best: dict[str, Took] = {}
        for _ in range(given.rounds):
            for name in names:
                try:
                    took = bench.run(name, claims, workers)
                except ChildProcessError as error:  # some cannot bear several processes
                    print(f"{name}: {error}", file=sys.stderr)
                    continue
                best[name] = min(best.get(name, took), took, key=lambda each: each.cpu)
                print(f"{claims:,} x {workers} {name}: {took.us:.1f} us", file=sys.stderr)
        ours, bound = best["fsqueue"].us, best["two-renames"].us
        print(f"\n{claims:,} claims, {workers} workers, load {os.getloadavg()[0]:.1f}\n")
        rows = [
            (name, f"{took.us:.1f}", f"{took.claims / took.wall:,.0f}",
             f"{took.us / bound:.2f}", f"{took.us / ours:.2f}", f"{took.claims - claims or ''}",
             KILLED.get(name, "back after a lease"))
            for name, took in best.items()
        ]  # fmt: skip
        head = ["queue", "CPU us a claim", "claims/s", "x two renames", "x fsqueue"]
        table([*head, "run twice", "a killed worker's claim"], rows)
        figures += [
            {"queue": name, "claims": claims, "workers": workers, "cpu_us": took.us,
             "per_second": took.claims / took.wall, "done": took.claims}
            for name, took in best.items()
        ]  # fmt: skip
    write_json(given, "claims", figures)
    shutil.rmtree(bench.place)
    return 0


if __name__ == "__main__":
    sys.exit(main())
