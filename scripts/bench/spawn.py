#!/usr/bin/env python3
"""Measure what a claim costs that is a process: `true`, started by fsqueue and by others.

    scripts/bench/spawn.py                       1,000 claims, 4 at a time; what is installed here
    scripts/bench/spawn.py --install             the others, too: by pip, and by apt-get as root
    scripts/bench/spawn.py --claims 5000 --workers 1 4 --rounds 3
    scripts/bench/spawn.py --copies --workers 2  `cp` by `xargs -P` and by `fsqueue run`, in pairs

Counted is all that a queue does from a list of files to the end: planning, queueing, a server, the
processes. `fsqueue work` is without its planning. All take turns; of each the least CPU is shown.
`xargs` is the bound: it remembers nothing. fsqueue alone publishes and syncs an output for each.

With --copies each file is copied to a new one, by `xargs` and at once afterwards by `fsqueue run`,
whose time includes the start of its workers, their leaving, and syncing each output to disk twice.
What counts is the ratio of the two times of a pair, because both meet the same load.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.bench.claims import ROOT, Took, make_venv
from scripts.bench.tables import parser, place, table, write_json
from tests.support.processes import FSQUEUE, environment

_PR_SET_CHILD_SUBREAPER = 36
HYPERQUEUE = """
import os, sys
from hyperqueue import Job, LocalCluster
from hyperqueue.cluster import WorkerConfig

with LocalCluster() as cluster:
    cluster.start_worker(WorkerConfig(cores=int(sys.argv[1])))
    job = Job()
    for name in os.listdir("in"):
        job.program(["true", f"in/{name}"])
    client = cluster.client()
    client.wait_for_jobs([client.submit(job)])
"""
FSQ = " ".join(map(str, FSQUEUE))
PLAN = f'{FSQ} plan command pool in/* --gpus "cpux$W" -- true {{input}}'
WORK = f"""
for number in $(seq 0 $((W - 1))); do {FSQ} work pool --spool cpu$number & done
wait
"""
QUEUES = {
    "xargs": "ls in | xargs -P $W -n 1 true",
    "fsqueue, plan and work": f"{PLAN}\n{WORK}",
    "fsqueue work": WORK,
    "GNU parallel": "ls in | parallel --will-cite -j $W --joblog joblog --resume true {}",
    "task-spooler": """
export TS_SOCKET=$PWD/socket TS_MAXFINISHED=10
tsp -S $W
for file in in/*; do tsp -n true $file; done
while tsp | grep -Eq 'queued|running'; do sleep 0.05; done
tsp -K
""",
    "nq": """
number=0
for file in in/*; do NQDIR=q$((number % W)) nq true $file; number=$((number + 1)); done
for queue in q*; do NQDIR=$queue nq -w; done
""",
    "disBatch": """
for file in in/*; do echo true $file; done > tasks
"$VENV"/bin/disBatch -s localhost:$W tasks
""",
    "hyperqueue": '"$VENV"/bin/python hq.py $W',
}
"""By name: what a shell runs in a directory where in/ has a file for each claim."""
COPIES = {
    "xargs": "mkdir out; ls in | xargs -P $W -I{} cp in/{} out/{}",
    "fsqueue run": f"{FSQ} run pool --workers $W",
}
PLAN_COPIES = f'{FSQ} plan command pool in/* --gpus "cpux$W" -- cp {{input}} {{output}}'
NEEDS = {
    "xargs": "xargs",
    "GNU parallel": "parallel",
    "task-spooler": "tsp",
    "nq": "nq",
}
KILLED = {
    "xargs": "all is forgotten",
    "GNU parallel": "run again by --resume",
    "task-spooler": "the queue is lost with its server",
    "nq": "lost",
    "disBatch": "run again by -r",
    "hyperqueue": "the queue is lost with its server",
}
"""What becomes of a claim when its process and its parent are killed."""
PACKAGES = ("parallel", "task-spooler", "nq")


def measured(script: str) -> None:
    """Run a script; print what it took, with the CPU of every process that came of it.

    A server that a queue leaves behind becomes our child when its parent ends.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    begun = time.monotonic()
    status = subprocess.run(["sh", "-euc", script], stdout=subprocess.DEVNULL).returncode
    wall = time.monotonic() - begun
    while True:
        try:
            os.wait()
        except ChildProcessError:
            break
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(json.dumps({"status": status, "wall": wall, "cpu": used.ru_utime + used.ru_stime}))


def run(root: Path, name: str, claims: int, workers: int, venv: Path) -> Took:
    """Let one queue run its claims in its own directory."""
    (root / "in").mkdir(parents=True)
    for number in range(claims):
        (root / "in" / f"{number:06d}").write_text(f"{number}\n")
    (root / "hq.py").write_text(HYPERQUEUE)
    env = environment({"W": str(workers), "VENV": str(venv)})
    quiet = subprocess.DEVNULL
    if name == "fsqueue work":
        subprocess.run(["sh", "-euc", PLAN], cwd=root, env=env, check=True, stdout=quiet)
    argv = [sys.executable, str(Path(__file__).resolve()), "--measure", QUEUES[name]]
    said = subprocess.run(argv, cwd=root, env=env, check=True, stdout=subprocess.PIPE, stderr=quiet)
    facts = json.loads(said.stdout)
    assert facts["status"] == 0, name
    if name.startswith("fsqueue"):
        assert len(os.listdir(root / "pool" / "done")) == claims, name
    return Took(claims, facts["cpu"], facts["wall"])


def copy(root: Path, name: str, claims: int, workers: int) -> Took:
    """Let `xargs` or `fsqueue run` copy files, in a directory of its own."""
    (root / "in").mkdir(parents=True)
    for number in range(claims):
        (root / "in" / f"{number:06d}").write_text(f"{number}\n")
    env = environment({"W": str(workers)})
    quiet = subprocess.DEVNULL
    if name != "xargs":
        subprocess.run(["sh", "-euc", PLAN_COPIES], cwd=root, env=env, check=True, stdout=quiet)
    argv = [sys.executable, str(Path(__file__).resolve()), "--measure", COPIES[name]]
    said = subprocess.run(argv, cwd=root, env=env, check=True, stdout=subprocess.PIPE, stderr=quiet)
    facts = json.loads(said.stdout)
    copies = root / "out" if name == "xargs" else root / "pool" / "outputs"
    assert facts["status"] == 0, name
    assert len([path for path in copies.iterdir() if path.is_file()]) == claims, name
    return Took(claims, facts["cpu"], facts["wall"])


def copies(given: argparse.Namespace, root: Path) -> list[dict[str, object]]:
    """Copy in pairs; print each pair, and the median ratio. Return the figures."""
    figures: list[dict[str, object]] = []
    for workers in given.workers:
        print(f"\n{given.claims:,} copies, {workers} at a time; seconds, and CPU seconds\n")
        rows, ratios = [], []
        for number in range(given.rounds):
            pair = {
                name: copy(root / f"{workers}-{number}-{name[:1]}", name, given.claims, workers)
                for name in COPIES
            }
            bound, ours = pair["xargs"], pair["fsqueue run"]
            ratios.append(bound.wall / ours.wall)
            rows.append(
                (
                    f"{bound.wall:.2f}",
                    f"{ours.wall:.2f}",
                    f"{ratios[-1]:.2f}",
                    f"{bound.cpu:.2f}",
                    f"{ours.cpu:.2f}",
                    f"{os.getloadavg()[0]:.1f}",
                )
            )
            figures += [
                {"queue": name, "copies": given.claims, "workers": workers, "wall": took.wall,
                 "cpu": took.cpu}
                for name, took in pair.items()
            ]  # fmt: skip
        table(["xargs", "fsqueue run", "ratio", "CPU xargs", "CPU fsqueue run", "load"], rows)
        print(f"\nmedian ratio: {statistics.median(ratios):.2f}")
    return figures


def installed(venv: Path) -> list[str]:
    """Return the queues that can be run here."""
    lacking = {name for name, program in NEEDS.items() if shutil.which(program) is None}
    if not (venv / "bin" / "disBatch").exists():
        lacking |= {"disBatch", "hyperqueue"}
    return [name for name in QUEUES if name not in lacking]


def install(venv: Path) -> None:
    """Get the others, if that was not done before."""
    make_venv(venv)
    if os.geteuid() == 0 and shutil.which("apt-get") and not all(map(shutil.which, NEEDS.values())):
        apt = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES]
        subprocess.run(apt, check=True, stdout=subprocess.DEVNULL)


def options() -> argparse.ArgumentParser:
    made = parser(__doc__)
    made.add_argument("--claims", type=int, default=1_000)
    made.add_argument("--workers", type=int, nargs="+", default=[4])
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--copies", action="store_true", help="copy files by xargs and fsqueue run")
    made.add_argument("--install", action="store_true", help="install what is not here")
    made.add_argument("--venv", type=Path, default=ROOT / ".venv-peers")
    made.add_argument("--only", nargs="+", metavar="QUEUE")
    return made


def main() -> None:
    """Measure; print a table for each number of workers."""
    if sys.argv[1:2] == ["--measure"]:
        return measured(sys.argv[2])
    given = options().parse_args()
    if given.install:
        install(given.venv)
    root, serial, figures = place(given), itertools.count(), []
    if given.copies:
        write_json(given, "spawn", copies(given, root))
        return shutil.rmtree(root)
    names = [name for name in installed(given.venv) if not given.only or name in given.only]
    for workers in given.workers:
        best: dict[str, Took] = {}
        for _, name in itertools.product(range(given.rounds), names):
            took = run(root / str(next(serial)), name, given.claims, workers, given.venv)
            best[name] = min(best.get(name, took), took, key=lambda each: each.cpu)
            print(f"{workers} {name}: {took.us / 1e3:.2f} ms", file=sys.stderr)
        print(f"\n{given.claims:,} claims, {workers} at a time, load {os.getloadavg()[0]:.1f}\n")
        bound = best.get("xargs", Took(1, 0.0, 0.0)).us or float("nan")
        ours = best.get("fsqueue, plan and work", Took(1, 0.0, 0.0)).us or float("nan")
        rows = [
            (name, f"{took.us / 1e3:.2f}", f"{took.claims / took.wall:,.0f}",
             f"{took.us / bound:.2f}", f"{took.us / ours:.2f}",
             KILLED.get(name, "back at once, or after a lease"))
            for name, took in best.items()
        ]  # fmt: skip
        head = ["queue", "CPU ms a claim", "claims/s", "x xargs", "x fsqueue"]
        table([*head, "when it is killed"], rows)
        figures += [
            {"queue": name, "claims": given.claims, "workers": workers, "cpu_ms": took.us / 1e3,
             "per_second": took.claims / took.wall}
            for name, took in best.items()
        ]  # fmt: skip
    write_json(given, "spawn", figures)
    shutil.rmtree(root)


if __name__ == "__main__":
    main()
