"""A storm: workers are killed at random while claims run; then every output is looked at.

The claims run a real program that writes its output in two pieces with a pause in between, so that
half an output would be seen. An output is read when it is first visible and again at the end: it
must be whole then, and the same file now.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

from fsqueue.pool.layout import State
from fsqueue.pool.settings import PoolDirectory
from fsqueue.records.journal import read_events
from tests.support.planning import ids, names_in, plan_command
from tests.support.processes import Running, fsqueue

PROGRAM = (
    "sh",
    "-c",
    'set -e; read -r name pause < "$1"; echo "$name attempt $3 pid $$" > "$2"; '
    'sleep "$pause"; echo "$name is whole" >> "$2"',
    "sh",
    "{input}",
    "{output}",
    "{attempt}",
)


@dataclass(frozen=True, slots=True)
class StormSettings:
    """The parameters of a storm."""

    seed: int
    claims: int = 400
    workers: int = 6
    lasts_s: float = 60.0
    """It lasts longer if the workers have not been killed often enough by then."""
    hits_min: int = 1
    """How many workers are killed, at least, while they hold a claim."""
    kill_every_s: float = 0.3
    pause_min_s: float = 0.005
    pause_max_s: float = 0.6
    lease_s: float = 3.0
    attempts: int = 100
    priorities: tuple[int, ...] = (0, 5, 9)
    """Each plan has one of them, in turn; the first claims are one plan for each."""
    further_claims: int = 60
    """How many more are planned whenever all is done before the storm is over; with 0, it ends."""
    aimed: bool = False
    """Whether only workers that hold a claim are killed."""


@dataclass(slots=True)
class StormResult:
    """What a storm did."""

    seconds: float = 0.0
    kills: int = 0
    hits: int = 0
    """Kills of a worker that held a claim, as far as this could be seen."""
    planned: int = 0
    done: int = 0
    failed: int = 0
    recovered: int = 0
    """Attempts charged to claims that were done in the end."""
    returned: int = 0
    """How often these were put back, charged or (with an output already there) uncharged."""
    adopted: int = 0
    finished_twice: int = 0
    replaced: int = 0
    torn: int = 0
    lost: int = 0
    strangers: int = 0
    other_errors: int = 0
    """Records in errors/ about anything but a killed worker."""
    expected: tuple[str, ...] = ()
    """Texts of such a record for which the storm itself is the reason."""
    harm: Counter[str] = field(default_factory=Counter)
    """What else was done to workers and their disk, and how they ended, by kind."""
    problems: list[str] = field(default_factory=list)

    @property
    def doubled(self) -> int:
        """Outputs or claims that came twice."""
        return self.finished_twice + self.replaced


class Storm:
    """One pool, its workers, and what kills them."""

    def __init__(
        self, directory: Path, settings: StormSettings, *, root: Path | None = None
    ) -> None:
        self.settings = settings
        self.tally = StormResult()
        self._directory = directory
        self._root = root or directory / "pool"
        self._chance = random.Random(settings.seed)
        self._workers: list[Running] = []
        self._started = 0
        self._next_kill = 0.0
        self._priorities: dict[str, int] = {}
        """Of each claim, by the name of its input."""
        self._next_priority = cycle(settings.priorities)
        shares = len(settings.priorities)
        for share in range(shares):
            first, end = (settings.claims * each // shares for each in (share, share + 1))
            self.pool = self._plan(end - first)
        self.witness = OutputWatcher(self.pool, self.tally)

    def run(self) -> StormResult:
        """Kill workers at random, let the others finish, and count."""
        begun = time.monotonic()
        try:
            self._kill_at_random(begun + self.settings.lasts_s)
            self._finish()
        finally:
            for worker in self._workers:
                worker.kill()
        self.tally.seconds = time.monotonic() - begun
        self._compare_priorities()
        return self.witness.count()

    def _compare_priorities(self) -> None:
        """See that no claim lost its priority on its way, however often it was put back."""
        for name in (*names_in(self.pool, State.DONE), *names_in(self.pool, State.FAILED)):
            if name.priority != self._priorities[name.id.partition("-")[0]]:
                self.tally.problems.append(f"{name} has another priority than its plan")

    def _plan(self, count: int) -> PoolDirectory:
        """Plan more claims, while workers run."""
        inputs = self._directory / "inputs"
        inputs.mkdir(exist_ok=True)
        first, self.tally.planned = self.tally.planned, self.tally.planned + count
        paths = [inputs / f"claim{number:04d}" for number in range(first, first + count)]
        priority = next(self._next_priority)
        self._priorities |= {path.name: priority for path in paths}
        for path in paths:
            pause_s = self._chance.uniform(self.settings.pause_min_s, self.settings.pause_max_s)
            path.write_text(f"{path.name} {pause_s:.3f}\n")
        return plan_command(
            self._root,
            paths,
            PROGRAM,
            spools=("cpu0", "cpu1", "cpu2"),
            lease_s=self.settings.lease_s,
            attempts=self.settings.attempts,
            priority=priority,
        )

    def _is_enough(self) -> bool:
        """Return whether enough has happened, so that the storm may end when its time is up."""
        return self.tally.hits >= self.settings.hits_min

    def _kill_at_random(self, until: float) -> None:
        self._next_kill = time.monotonic()
        while time.monotonic() < until or not self._is_enough():
            self._fill_up()
            self._kill_one()
            self.witness.look()
            if not names_in(self.pool, State.WAITING) and not names_in(self.pool, State.RUNNING):
                if not self.settings.further_claims:
                    return
                self._plan(self.settings.further_claims)
            time.sleep(0.02)

    def _fill_up(self) -> None:
        """Start workers in place of those that ended."""
        self._workers = [worker for worker in self._workers if not worker.ended()]
        while len(self._workers) < self.settings.workers:
            self._workers.append(self._start())

    def _kill_one(self) -> None:
        """Kill a worker, if it is time."""
        if time.monotonic() < self._next_kill:
            return
        chosen = [each for each in self._workers if not self.settings.aimed or self._holds(each)]
        if chosen:
            self._next_kill += self.settings.kill_every_s
            victim = self._chance.choice(chosen)
            self._workers.remove(victim)
            self._kill(victim)

    def _start(self) -> Running:
        self._started += 1
        log = self._directory / f"worker-{self._started:04d}.log"
        words = ["work", self.pool.root, "--steal-interval", "0.5"]
        return Running(words, log, env=self._environment())

    def _environment(self) -> dict[str, str]:
        return {}

    def _kill(self, worker: Running) -> None:
        worker.kill()
        self.tally.kills += 1
        self.tally.hits += self._holds(worker)

    def _holds(self, worker: Running) -> bool:
        held = (name.owner or "" for name in names_in(self.pool, State.RUNNING))
        return any(f"-{worker.pid}-" in owner for owner in held)

    def _finish(self) -> None:
        """Let the surviving workers finish; they leave by themselves."""
        for worker in self._workers:
            status = worker.reap(deadline_s=180)
            if status not in (0, 3, 5):  # 5: others still ran the last claims
                self.tally.problems.append(f"a survivor left with {status}:\n{worker.log}")
        self.witness.look()


class OutputWatcher:
    """Looks at a pool's outputs during a storm, and counts when it is over."""

    def __init__(self, pool: PoolDirectory, tally: StormResult) -> None:
        self.pool = pool
        self.tally = tally
        self._seen: dict[str, tuple[int, bytes]] = {}

    def look(self) -> None:
        """Read every output that was not visible before."""
        directory = self.pool.directory("outputs")
        for name in os.listdir(directory):
            if not name.startswith(".") and name not in self._seen:
                self._seen[name] = identity(f"{directory}/{name}")
                if not is_whole(name, self._seen[name][1]):
                    self.tally.torn += 1
                    self.tally.problems.append(f"{name} is torn: {self._seen[name][1]!r}")

    def forget_the_lost(self) -> None:
        """Forget outputs that a disk lost before a sync; their claims are not in done/."""
        there = set(os.listdir(self.pool.directory("outputs")))
        self._seen = {name: seen for name, seen in self._seen.items() if name in there}

    def count(self) -> StormResult:
        """Look at everything the storm left behind."""
        pool, tally = self.pool, self.tally
        done, failed = ids(pool, State.DONE), ids(pool, State.FAILED)
        tally.done, tally.failed = len(done), len(failed)
        tally.recovered = sum(name.attempt for name in names_in(pool, State.DONE))
        tally.returned = sum(name.returns for name in names_in(pool, State.DONE))
        tally.lost = tally.planned - len({*done, *failed})
        outputs = set(os.listdir(pool.directory("outputs")))
        visible = {name for name in outputs if not name.startswith(".")}
        tally.lost += len({f"{id}.out" for id in done} - visible)
        tally.strangers = len(visible - {f"{id}.out" for id in done + failed})
        directory = pool.directory("outputs")
        tally.replaced = sum(
            name not in visible or identity(f"{directory}/{name}") != seen
            for name, seen in self._seen.items()
        )
        self._read_records()
        self._ask_fsqueue()
        return tally

    def _read_records(self) -> None:
        journal = Counter[tuple[str, str]]()
        for path in Path(self.pool.directory("events")).glob("*.jsonl"):
            for event in read_events(str(path)):
                journal[event["event"], event.get("id", "")] += 1
        self.tally.adopted = sum(n for (event, _), n in journal.items() if event == "adopted")
        self.tally.finished_twice = sum(
            n - 1 for (event, _), n in journal.items() if event == "finished"
        )
        for path in Path(self.pool.directory("errors")).glob("[!.]*.a*.json"):
            error = json.loads(path.read_text())["error"]
            if not error.startswith("worker lost"):
                self.tally.other_errors += 1
                if not any(words in error for words in self.tally.expected):
                    self.tally.problems.append(f"{path.name}: {error}")

    def _ask_fsqueue(self) -> None:
        """Check the pool with fsqueue check and fsqueue status."""
        check = fsqueue("check", self.pool.root)
        if check.returncode != 0:
            self.tally.problems.append(f"fsqueue check: {check.stdout}{check.stderr}")
        held = os.listdir(self.pool.directory("running"))
        if held:
            self.tally.problems.append(f"in running/: {held}")
        self.tally.problems += status_problems(self.pool, self.tally)


def status_problems(pool: PoolDirectory, tally: StormResult) -> list[str]:
    """Return where `fsqueue status --json` differs from what was counted."""
    run = fsqueue("status", pool.root, "--json")
    expected = 3 if tally.failed else 0
    if run.returncode != expected:
        return [f"fsqueue status left with {run.returncode}, not {expected}: {run.stderr}"]
    said = json.loads(run.stdout)
    counted = {"planned": tally.planned, "done": tally.done, "failed": tally.failed}
    counted |= {"waiting": 0, "running": 0}
    wrong = {key: said[key] for key, count in counted.items() if said[key] != count}
    if sum(spool["planned"] for spool in said["spools"]) != tally.planned:
        wrong["spools"] = said["spools"]
    return [f"fsqueue status says {wrong} where {counted} was counted"] if wrong else []


def identity(path: str) -> tuple[int, bytes]:
    """Return what no two files share: inode and content, which names attempt and process."""
    with open(path, "rb") as file:
        return os.fstat(file.fileno()).st_ino, file.read()


def is_whole(name: str, data: bytes) -> bool:
    """Return whether an output has both of its lines, of the right claim."""
    stem = name.partition("-")[0]
    lines = data.decode().splitlines()
    return len(lines) == 2 and lines[0].startswith(f"{stem} a") and lines[1] == f"{stem} is whole"
