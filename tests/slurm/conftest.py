"""A Slurm for all tests of this directory, and a pool that its jobs work."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest

from fsqueue.handler import load_handler
from fsqueue.maintenance.audit import audit_pool
from fsqueue.pool.layout import State
from fsqueue.pool.names import ClaimName
from fsqueue.pool.settings import PoolDirectory, Spool, create_pool
from fsqueue.records.status import Status, read_statuses
from fsqueue.scheduling.planner import PlanRequest, plan_into
from fsqueue.slurm.allocation import Job
from tests.slurm.cluster import PACKAGES, Cluster, missing
from tests.support.handlers import install_handler
from tests.support.planning import counts, ids, make_inputs, names_in
from tests.support.processes import fsqueue, state_of, wait_for

T = TypeVar("T")

LEASE_S = 3.0
SPOOLS = (Spool("gpu0", "RTX 4090", 1.5), Spool("gpu1", "RTX 3090", 1.0))
WAIT = 'until [ -e "$2" ]; do sleep 0.05; done; cat "$1"'
"""A program that ends once a file, its gate, is there."""

DEAF = """
import time
from fsqueue import Handler

class Made(Handler):
    def run(self, work):
        gate = work.input.parents[1] / "gate"
        while not gate.exists():  # and work.stopping is never asked
            time.sleep(0.05)
        work.output.write_bytes(work.input.read_bytes())
"""


def install_deaf(site: Path, patch: pytest.MonkeyPatch) -> None:
    """Install a handler `deaf`, here and for jobs, whose claims cannot be asked to stop."""
    path = install_handler(site, "deaf", DEAF)["PYTHONPATH"]
    patch.setenv("PYTHONPATH", os.pathsep.join([path, os.environ.get("PYTHONPATH", "")]))
    patch.syspath_prepend(path)


@pytest.fixture(scope="session")
def _slurm() -> Iterator[Cluster]:
    if absent := missing():
        pytest.skip(f"Slurm is not installed: no {absent[0]} (Debian: apt-get install {PACKAGES})")
    cluster = Cluster()
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def cluster(_slurm: Cluster) -> Iterator[Cluster]:
    """A Slurm with every node idle."""
    yield _slurm
    _slurm.clear()


class Farm:
    """A pool and the cluster that works it."""

    def __init__(self, cluster: Cluster, root: Path) -> None:
        self.cluster = cluster
        self.root = root
        self.gate = root / "gate"
        self.pool: PoolDirectory

    def plan(
        self,
        count: int,
        script: str = WAIT,
        *,
        lease_s: float = LEASE_S,
        handler: str = "command",
        spools: Sequence[Spool] = SPOOLS,
    ) -> PoolDirectory:
        """Plan a shell script over small files; it gets the input, the gate and our root."""
        inputs = [str(path) for path in make_inputs(self.root / "in", count)]
        argv = ["sh", "-c", script, "sh", "{input}", str(self.gate), str(self.root)]
        options = {"argv": argv, "grace": 1.0} if handler == "command" else {}
        self.pool = create_pool(str(self.root / "the pool's %j"), lease_s=lease_s)
        made = load_handler(handler)
        outcome = plan_into(
            self.pool, PlanRequest(made, made.prepare(options), inputs, list(spools))
        )
        assert outcome.total.claims == count, outcome
        return self.pool

    def submit(self, *words: str) -> list[str]:
        """Submit with `fsqueue slurm`; return the names of the tasks."""
        given = ["slurm", self.pool.root, "--json", "--start-delay", "0s", *words]
        done = fsqueue(*given, env=self.cluster.environ)
        assert done.returncode == 0, done.stderr
        facts = json.loads(done.stdout)
        self.merge = facts["merge"]
        return [f"{each['id']}_{index}" for each in facts["arrays"] for index in each["indices"]]

    # ---- looking ----

    def wait(self, condition: Callable[[], T | None], what: str) -> T:
        """Wait for a condition; the error at the deadline has the logs of Slurm and workers."""
        try:
            found = wait_for(condition, what)
        except TimeoutError as error:
            queue = self.cluster.run("squeue", "--states=all", "--format=%i %T %r %S %N").stdout
            nodes = self.cluster.run("sinfo", "--Node", "--format=%N %T %E").stdout
            controller = (self.cluster.root / "log" / "ctld.log").read_text()[-4000:]
            raise TimeoutError(f"{error}\n{queue}\n{nodes}\n{controller}\n{self.logs()}") from error
        assert found is not None
        return found

    def workers(self) -> dict[Job, Status]:
        """Return what each worker reports, by the run of its job."""
        found = {Job.of(status.slurm): status for status in read_statuses(self.pool).values()}
        return {job: status for job, status in found.items() if job is not None}

    def worker(self, task: str, restarts: int = 0) -> Status:
        """Wait for the worker of this run of a task to report itself; return its report."""

        def look() -> Status | None:
            each = {(job.name, job.restarts): status for job, status in self.workers().items()}
            return each.get((task, restarts))

        return self.wait(look, f"run {restarts} of {task} to report itself")

    def held(self, task: str, restarts: int = 0) -> ClaimName:
        """Wait until this run of a task holds a claim; return the claim."""
        worker = self.worker(task, restarts).worker_id

        def look() -> ClaimName | None:
            mine = (n for n in names_in(self.pool, State.RUNNING) if n.owner == worker)
            return next(mine, None)

        return self.wait(look, f"{worker} to hold a claim")

    def restarts(self, task: str) -> int:
        """Return how often Slurm has requeued a task."""
        return int(self.cluster.facts(task)["Restarts"])

    def logs(self) -> str:
        """What the workers said."""
        paths = sorted(Path(self.pool.directory("events")).glob("slurm-*.log"))
        return "\n".join(f"--- {path.name}\n{path.read_text()}" for path in paths)

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Return all events of a kind from all journals."""
        paths = Path(self.pool.directory("events")).glob("*.jsonl")
        facts = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
        return [fact for fact in facts if fact["event"] == kind]

    # ---- the verdict ----

    def open(self) -> None:
        """Let every program end."""
        self.gate.touch()

    def finish(self, *tasks: str, deadline_s: float = 60.0) -> None:
        """Open the gate, wait for these tasks to complete, and find each output once, whole."""
        self.open()
        states = self.cluster.wait_for_end(tasks, deadline_s=deadline_s)
        assert set(states.values()) == {"COMPLETED"}, f"{states}\n{self.logs()}"
        self.verify()

    def verify(self) -> None:
        """Find every claim done, each output there once and whole, and no attempt charged."""
        pool = self.pool
        done = ids(pool, State.DONE)
        inputs = sorted((self.root / "in").iterdir())
        assert counts(pool) == {"done": len(inputs)}, f"{counts(pool)}\n{self.logs()}"
        assert len(set(done)) == len(done)
        outputs = [path for path in Path(pool.directory("outputs")).iterdir() if path.is_file()]
        assert sorted(path.read_text() for path in outputs) == sorted(
            path.read_text() for path in inputs
        )
        assert audit_pool(pool).problems == []
        assert {name.attempt for name in names_in(pool, State.DONE)} == {0}
        assert not [each for each in os.listdir(pool.directory("errors")) if ".a" in each]


@pytest.fixture
def farm(cluster: Cluster, tmp_path: Path) -> Farm:
    """A farm without a pool yet; `plan` makes one."""
    return Farm(cluster, tmp_path)


@pytest.fixture
def freeze() -> Iterator[Callable[[int], None]]:
    """Stop a process as a hung node would; whatever is still stopped at the end is let go on."""
    frozen: list[int] = []

    def stop(pid: int) -> None:
        frozen.append(pid)
        os.kill(pid, signal.SIGSTOP)
        wait_for(lambda: state_of(pid) == "T", f"process {pid} to stop")

    yield stop
    for pid in frozen:
        if state_of(pid) == "T":
            os.kill(pid, signal.SIGCONT)
