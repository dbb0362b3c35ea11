#!/usr/bin/env python3
"""Measure what every command needs for pools of more and more claims: CPU, and peak memory.

    scripts/bench/million.py --dir /dev/shm                    10,000, 100,000 and 1,000,000 claims
    scripts/bench/million.py --claims 1000 10000 --workers 4
    scripts/bench/million.py --claims 1000000 --made           pools made file by file, not planned

One input is planned into this many no-op claims; one in a hundred fails for good. Then the
pool is looked at, worked off by two workers of one spool, looked at again, and what failed is put
back. Every step is a separate command; of workers, CPU is the sum and memory the largest. The
planner syncs every claim: give a --dir in memory. A million claims need some 6 GB there.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from fsqueue.pool import plans
from fsqueue.pool.names import ClaimName
from fsqueue.pool.plans import Plan, Share
from fsqueue.pool.settings import Spool, add_spool, create_pool
from scripts.bench.tables import parser, place, table, write_json
from tests.support.handlers import install_handler
from tests.support.memory_use import MeasuredCommand

HANDLER = """
from fsqueue import ClaimImpossible, Handler, Item, Option

class Made(Handler):
    suffix = None
    options = (Option("count", 1, "how many claims"),)

    def cut(self, sources, options, cost_max):
        for number in range(options["count"] * len(sources)):
            yield Item(f"c{number}", "noop", 1 + number % 97, {"n": number}, {"n": number})

    def run(self, work):
        if work.payload["n"] % 100 == 99 and not work.attempt:
            raise ClaimImpossible("one in a hundred")
"""


def once(words: list[str], env: dict[str, str], processes: int) -> tuple[float, float]:
    """Run a command in this many processes; return its CPU seconds and its peak memory in MiB."""
    started = [MeasuredCommand(words, env) for _ in range(processes)]
    ended = [each.end() for each in started]
    assert {used.status for used in ended} <= {0, 3, 5}, (words, ended)
    return sum(used.cpu_s for used in ended), max(used.peak_kib for used in ended) / 1024


def made(root: str, claims: int) -> None:
    """Make the pool that the planner would make, in a tenth of the time."""
    pool = create_pool(root)
    spool = add_spool(pool, Spool("cpu0", "cpu", 1.0)).name
    names = [ClaimName(f"c{n}-5c1f09ab33d2", "noop", 1 + n % 97) for n in range(claims)]
    all_of_it = Share(claims, sum(name.cost for name in names), {"n": claims})
    head = Plan("made", "2026-11-27", "noop", ("noop",), None, all_of_it, {spool: all_of_it}, {})
    rows = ((str(name), spool) for name in names)
    plans.number_plan(pool, "made", plans.write_plan(pool, head, [("key", "/input")], rows), 1)
    for n, name in enumerate(names):
        claim = f'{{"id":"{name.id}","handler":"noop","spool":"{spool}","suffix":null,'
        claim += f'"measures":{{"n":{n}}},"options":{{"count":1}},"payload":{{"n":{n}}}}}\n'
        fd = os.open(pool.waiting(spool, name), os.O_WRONLY | os.O_CREAT, 0o644)
        os.write(fd, claim.encode())
        os.close(fd)


def steps(pool: str, source: str, claims: int, *, more: int) -> list[tuple[str, list[str]]]:
    """Return the steps, each with its command; in a pool that was made, plan some more."""
    work = ["work", pool, "--spool", "cpu0"]
    return [
        ("plan", ["plan", "noop", pool, source, "--gpus", "cpu", "--count", str(claims)]),
        ("status, waiting", ["status", pool]),
        ("watch --once, waiting", ["watch", pool, "--once"]),
        ("check, waiting", ["check", pool]),
        ("plan again", ["plan", "noop", pool, source, "--gpus", "cpu", "--count", str(more)]),
        ("work", work),
        ("status, done", ["status", pool]),
        ("watch --once, done", ["watch", pool, "--once"]),
        ("check, done", ["check", pool]),
        ("joblog", ["joblog", pool]),
        ("recover", ["recover", pool]),
        ("failed", ["failed", pool]),
        ("retry", ["retry", pool]),
        ("work, the failed", work),
        ("clean", ["clean", pool]),
    ]


def main() -> None:
    """Measure, and print the table."""
    options = parser(__doc__)
    options.add_argument("--claims", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--made", action="store_true", help="do not measure planning")
    given = options.parse_args()
    directory = place(given)
    env = install_handler(directory / "site", "noop", HANDLER)
    source = directory / "input"
    source.write_text("one input\n")
    figures: dict[str, list[tuple[float, float]]] = {}
    for claims in given.claims:
        pool = str(directory / f"pool-{claims}")
        if given.made:
            made(pool, claims)
        more = 100 if given.made else claims
        for step, words in steps(pool, str(source), claims, more=more)[given.made :]:
            processes = given.workers if words[0] == "work" else 1
            cpu, mib = once(words, env, processes)
            figures.setdefault(step, []).append((cpu, mib))
            print(f"{claims:>9,} {step:24} {cpu:8.2f} CPU s {mib:6.0f} MiB", file=sys.stderr)
        shutil.rmtree(pool)
    head = ["step"]
    for claims in given.claims:
        head += [f"CPU s, {claims:,}", "us a claim", "MiB"]
    rows = []
    for step, found in figures.items():
        row: list[object] = [step]
        for claims, (cpu, mib) in zip(given.claims, found, strict=True):
            row += [f"{cpu:.2f}", f"{1e6 * cpu / claims:.1f}", f"{mib:.0f}"]
        rows.append(row)
    table(head, rows)
    write_json(given, "million", {"claims": given.claims, "steps": figures})
    shutil.rmtree(directory)


if __name__ == "__main__":
    main()
