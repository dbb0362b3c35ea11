"""A storm of ordinary life: bad inputs, programs that hang, closed terminals, a purge, bad mounts.

One pool, twice: once of good claims alone, with workers that nothing disturbs; once with nuisances
among the claims and all around the workers. Whatever can be done must be done, everything else must
be named with its true reason, and it must not take much longer.

The claims run a real program, and the workers are real processes under something like a batch
system: four places, and a new worker wherever one ends.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fsqueue.pool.completeness import look_for_all
from fsqueue.pool.layout import State
from fsqueue.pool.names import VAIN_RUNS_MAX, ClaimName
from fsqueue.pool.settings import PoolDirectory
from tests.support.planning import ids, names_in, plan_command
from tests.support.processes import FSQUEUE, environment, fsqueue

PROGRAM = (
    "sh",
    "-c",
    """
    read -r kind pause name < "$1"
    case $kind in
      bad) echo "$name is no FASTA" >&2; exit 1;;
      hangs|long) exec sleep 100000;;
      debris) mkdir "$2.d"
              (trap '' TERM; n=0; while [ $n -lt 2000 ]; do : > "$2.d/$n"; n=$((n+1)); done) &
              sleep 0.05; exit 1;;
      leaves) (trap '' TERM HUP; while :; do echo late >> "$2"; sleep 0.05; done) &;;
    esac
    echo "$name begins" >> "$2"; sleep "$pause"; echo "$name is whole" >> "$2"
    """,
    "sh",
    "{input}",
    "{output}",
)
FLAKY = """
import errno, os, random, sys
from fsqueue.storage import atomic

chance = random.Random(int(sys.argv.pop(1)))
FAILING = {"open", "rename", "link", "scandir", "unlink"}

class Flaky:
    def __getattr__(self, name):
        real = getattr(os, name)
        if name not in FAILING:
            return real
        def call(path, *rest, **more):
            if chance.random() < 0.002 and not str(path).endswith("/pool.json"):
                raise OSError(errno.EIO, os.strerror(errno.EIO), path)
            return real(path, *rest, **more)
        return call

atomic.os = Flaky()
from fsqueue.cli import main
main()
"""
"""fsqueue over a mount of which one operation in five hundred fails.

Not the very first, which opens the pool: that error is reported at once, and ends the command.
"""


PRIORITIES = (0, 3, 6)
LONG_PRIORITY = 9
BEFORE_IT_BEGAN = (-signal.SIGHUP, -signal.SIGINT, -signal.SIGTERM)
"""How a worker ends that is asked to leave before it took over its signals, and so took nothing."""


@dataclass(frozen=True, slots=True)
class LifeSettings:
    """The parameters of a storm of ordinary life."""

    seed: int
    claims: int = 1000
    workers: int = 4
    bad: float = 0.03
    hangs: float = 0.01
    leaves: float = 0.01
    debris: float = 0.01
    long: float = 0.01
    pause_min_s: float = 0.5
    pause_max_s: float = 1.0
    timeout_s: float = 1.5
    short_limit_s: float = 1.5
    """The time limit of the first few workers; a claim that is too long meets it at once."""
    limits_s: tuple[float, float] = (15.0, 60.0)
    signal_every_s: float = 10.0
    lease_s: float = 3.0
    attempts: int = 2


@dataclass(slots=True)
class LifeResult:
    """What a storm of ordinary life did."""

    calm_s: float = 0.0
    """How long the good claims alone took, undisturbed."""
    storm_s: float = 0.0
    """How long they took among the nuisances."""
    kinds: Counter[str] = field(default_factory=Counter)
    harm: Counter[str] = field(default_factory=Counter)
    done: int = 0
    failed: int = 0
    put_back: int = 0
    missing: int = 0
    status: int = -1
    problems: list[str] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """The storm's time to that of the calm."""
        return self.storm_s / max(self.calm_s, 1e-9)


class Life:
    """The pools, their workers, and what happens to them."""

    def __init__(self, directory: Path, settings: LifeSettings) -> None:
        self.settings = settings
        self.result = LifeResult()
        self._directory = directory
        self._chance = random.Random(settings.seed)
        self._flaky = directory / "flaky.py"
        self._flaky.write_text(FLAKY)
        self._kinds = self._choose_kinds()
        self._started = 0

    def run(self) -> LifeResult:
        """Run the calm, then the storm, and look at everything that is left."""
        self.result.calm_s = self._calm()
        pool = self._plan("storm", self._kinds)
        self.result.storm_s = self._storm(pool)
        self._until_only_the_hopeless_are_left(pool)
        self._look(pool)
        self._end(pool)
        return self.result

    # ---- the claims ----

    def _choose_kinds(self) -> list[str]:
        it = self.settings
        kinds: list[str] = []
        for kind in ("bad", "hangs", "leaves", "debris", "long"):
            kinds += [kind] * round(getattr(it, kind) * it.claims)
        kinds += ["good"] * (it.claims - len(kinds))
        self._chance.shuffle(kinds)
        self.result.kinds = Counter(kinds)
        return kinds

    def _plan(self, name: str, kinds: list[str]) -> PoolDirectory:
        """Plan the claims, some before others; those that are too long are the most urgent.

        They have no timeout, and are the largest as well, and must delay no other all the same.
        """
        chance = random.Random(self.settings.seed)
        inputs = self._directory / f"{name}-inputs"
        inputs.mkdir()
        paths: dict[int, list[Path]] = {LONG_PRIORITY: [], **{each: [] for each in PRIORITIES}}
        for number, kind in enumerate(kinds):
            pause_s = chance.uniform(self.settings.pause_min_s, self.settings.pause_max_s)
            path = inputs / f"{kind}{number:04d}"
            size = 4000 if kind in ("long", "bad") else int(1000 * pause_s)
            path.write_text(f"{kind} {pause_s:.3f} {path.name}\n{'x' * size}\n")
            ordinary = PRIORITIES[number % len(PRIORITIES)]
            paths[LONG_PRIORITY if kind == "long" else ordinary].append(path)
        for priority, some in paths.items():
            if some:
                pool = plan_command(
                    self._directory / name,
                    some,
                    PROGRAM,
                    spools=[f"cpu{n}" for n in range(self.settings.workers)],
                    lease_s=self.settings.lease_s,
                    attempts=self.settings.attempts,
                    timeout=0.0 if priority == LONG_PRIORITY else self.settings.timeout_s,
                    priority=priority,
                    grace=0.2,
                )
        return pool

    # ---- the calm and the storm ----

    def _calm(self) -> float:
        good = [kind for kind in self._kinds if kind in ("good", "leaves")]
        pool = self._plan("calm", ["good"] * len(good))
        begun = time.monotonic()
        workers = [self._worker(pool) for _ in range(self.settings.workers)]
        for worker in workers:
            worker.wait(600)
        return time.monotonic() - begun

    def _storm(self, pool: PoolDirectory) -> float:
        """Disturb the workers until everything is done that can be; return how long it took."""
        begun = time.monotonic()
        doable = sum(kind in ("good", "leaves") for kind in self._kinds)
        workers: list[subprocess.Popen[bytes]] = []
        nuisances = self._nuisances(pool, workers)
        signal_at, purge_at = begun + 3.0, begun + 5.0
        self._stuck = os.pipe()
        fcntl.fcntl(self._stuck[1], fcntl.F_SETPIPE_SZ, 4096)
        try:
            while self._done(pool) < doable - self.result.missing:
                now = time.monotonic()
                if now - begun > 20 * max(self.result.calm_s, 10.0):
                    self.result.problems.append("it does not end")
                    break
                self._fill_up(pool, workers)
                if now >= signal_at:
                    next(nuisances)
                    signal_at = now + self.settings.signal_every_s
                if purge_at and now >= purge_at and self._purge(pool):
                    purge_at = 0.0
                time.sleep(0.05)
        finally:
            took_s = time.monotonic() - begun
            for worker in workers:
                worker.terminate()
            for worker in workers:
                self._note_end(worker, worker.wait(60))
            for fd in self._stuck:
                os.close(fd)
        return took_s

    def _done(self, pool: PoolDirectory) -> int:
        return len(os.listdir(pool.state(State.DONE)))

    def _fill_up(self, pool: PoolDirectory, workers: list[subprocess.Popen[bytes]]) -> None:
        for worker in [each for each in workers if each.poll() is not None]:
            workers.remove(worker)
            self._note_end(worker, worker.returncode)
        while len(workers) < self.settings.workers:
            limit_s = self._chance.uniform(*self.settings.limits_s)
            if self._started < 4 * self.settings.workers:
                limit_s = self.settings.short_limit_s
            workers.append(self._worker(pool, limit_s, disturbed=True))

    def _note_end(self, worker: subprocess.Popen[bytes], status: int) -> None:
        self.result.harm[f"ended {status}"] += 1
        if status not in (0, 3, 5, 75, 129, 130, 143, *BEFORE_IT_BEGAN):
            log = (self._directory / f"worker-{worker.pid}.log").read_text(errors="replace")
            self.result.problems.append(f"a worker ended with {status}: {log[-2000:]}")

    def _worker(
        self, pool: PoolDirectory, limit_s: float | None = None, *, disturbed: bool = False
    ) -> subprocess.Popen[bytes]:
        """Start a worker; every sixth of the disturbed has a stuck log, every fifth a bad mount."""
        self._started += 1
        words = [*FSQUEUE, "work", pool.root, "--steal-interval", "0.5"]
        if disturbed and self._started % 5 == 0:
            self.result.harm["flaky mounts"] += 1
            seed = str(self._chance.randrange(10**6))
            words = [sys.executable, str(self._flaky), seed, *words[len(FSQUEUE) :]]
        if limit_s is not None:
            words += ["--time-limit", f"{limit_s:.1f}s"]
        stderr = open(self._directory / f"log-{self._started}", "wb")  # noqa: SIM115
        try:
            stuck = disturbed and self._started % 6 == 0
            self.result.harm["stuck logs"] += stuck
            worker = subprocess.Popen(
                words,
                env=environment({"FSQUEUE_SPOOL": f"cpu{self._started % self.settings.workers}"}),
                stdin=subprocess.DEVNULL,
                stderr=self._stuck[1] if stuck else stderr,
                start_new_session=True,
            )
        finally:
            stderr.close()
        os.rename(self._directory / f"log-{self._started}",
                  self._directory / f"worker-{worker.pid}.log")  # fmt: skip
        return worker

    def _nuisances(
        self, pool: PoolDirectory, workers: list[subprocess.Popen[bytes]]
    ) -> Iterator[None]:
        """Yield after each disturbance: a closed terminal, Ctrl-C twice, one after the other."""
        while True:
            for numbers in ((signal.SIGHUP,), (signal.SIGINT, signal.SIGINT)):
                victim = self._chance.choice(workers)
                for number in numbers:
                    victim.send_signal(number)
                self.result.harm[numbers[0].name] += 1
                yield

    def _purge(self, pool: PoolDirectory) -> bool:
        """Remove one good claim that waits, as a purge of old files does."""
        waiting = [name for name in names_in(pool, State.WAITING) if name.id.startswith("good")]
        name = min(waiting, key=lambda name: name.cost, default=None)
        if name is None:
            return False
        for spool in os.listdir(pool.directory("spools")):
            path = Path(pool.directory("spools"), spool, str(name))
            if path.exists():
                try:
                    path.unlink()
                except FileNotFoundError:
                    return False  # RACE: a worker took it
                self.result.harm["purged"] += 1
                self.result.missing += 1
                return True
        return False

    # ---- what is left ----

    def _until_only_the_hopeless_are_left(self, pool: PoolDirectory) -> None:
        """Let workers with little time come and go, until none takes anything."""
        limit_s = 2 * self.settings.timeout_s
        for _ in range(50):
            workers = [self._worker(pool, limit_s) for _ in range(self.settings.workers)]
            statuses = {worker.wait(60) for worker in workers}
            waiting = names_in(pool, State.WAITING)
            if statuses <= {1, 3, 5} and all(name.vain >= VAIN_RUNS_MAX for name in waiting):
                return
        self.result.problems.append("claims are still tried again and again")

    def _look(self, pool: PoolDirectory) -> None:
        """See that what is done is whole, and that everything else is named with its reason."""
        result, kinds = self.result, self.result.kinds
        done, failed = ids(pool, State.DONE), ids(pool, State.FAILED)
        waiting = names_in(pool, State.WAITING)
        result.done, result.failed, result.put_back = len(done), len(failed), len(waiting)
        self._expect(len(done), kinds["good"] + kinds["leaves"] - result.missing, "done")
        self._expect(len(set(done)), len(done), "done once")
        self._expect(len(failed), kinds["bad"] + kinds["hangs"] + kinds["debris"], "failed")
        self._expect(len(waiting), kinds["long"], "put back in vain")
        self._expect_all(waiting, lambda name: name.id.startswith("long") and not name.attempt)
        for name in names_in(pool, State.FAILED):
            error = self._last_error(pool, name)
            why = "--timeout" if name.id.startswith("hangs") else "exited with status 1"
            if why not in error:
                result.problems.append(f"{name.id} failed for another reason: {error}")
        charged = [name for name in names_in(pool, State.DONE) if name.attempt]
        for name in charged:
            result.problems.append(f"{name.id} was charged, though nothing was wrong with it")
        for id in done:
            text = Path(pool.output(id, ".out")).read_text()
            if not text.rstrip().endswith(("is whole", "late")) or "is whole" not in text:
                result.problems.append(f"{id} is torn: {text[-100:]!r}")
        status = fsqueue("status", pool.root).stdout
        named = sum("times without progress" in line for line in status.splitlines())
        if kinds["long"] and not named:
            result.problems.append(f"status names no claim that was put back in vain:\n{status}")
        found = look_for_all(pool)
        self._expect(len(found.missing), result.missing, "missing and named")

    def _last_error(self, pool: PoolDirectory, name: ClaimName) -> str:
        return str(json.loads(Path(pool.error(name.id, name.attempt)).read_text())["error"])

    def _expect(self, found: int, expected: int, what: str) -> None:
        if found != expected:
            self.result.problems.append(f"{found} instead of {expected} claims are {what}")

    def _expect_all(self, names: list[ClaimName], holds: Callable[[ClaimName], bool]) -> None:
        for name in names:
            if not holds(name):
                self.result.problems.append(f"{name} waits still")

    def _end(self, pool: PoolDirectory) -> None:
        """Do what a person would: cancel what is hopeless, plan the lost claim again; finish."""
        hopeless = [name.id for name in names_in(pool, State.WAITING)]
        if hopeless:
            fsqueue("cancel", pool.root, *hopeless)
        if self.result.missing:
            self._expect(fsqueue("status", pool.root).returncode, 1, "status while one is missing")
            fsqueue("check", pool.root, "--repair")
        fsqueue("work", pool.root, "--steal-interval", "0.5", deadline_s=60)
        self.result.status = fsqueue("status", pool.root).returncode
        self._expect(self.result.status, 3, "exit status in the end")
        check = fsqueue("check", pool.root, "--deep")
        if check.returncode:
            self.result.problems.append(f"check: {check.stdout}")
