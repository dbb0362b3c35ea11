"""The processes of a simulated pool: planners, workers and commands, all running the real code."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from random import Random
from typing import Any
from unittest.mock import patch

from fsqueue.errors import ClaimFailed, ClaimImpossible, Interrupted, WorkerBroken
from fsqueue.handler import Handler, Item, Source, Work
from fsqueue.maintenance import repair
from fsqueue.pool.settings import Spool, create_pool, open_pool, spool_names
from fsqueue.scheduling.planner import PlanRequest, plan_into
from fsqueue.worker.worker import Worker, WorkerSettings
from tests.sim.fake_os import SIM, SIM_OS
from tests.sim.world import Process, Violation

ROOT = "/pool"
HANGS = 2
"""How many attempts of a claim hang that hangs at all."""


def output_of(id: str) -> bytes:
    """Return what the output of a claim must be."""
    return f"begin {id} ".encode() + b"x" * 20 + b" end\n"


class Simulated(Handler):
    """Plan `a.30.MANNER` as a claim of cost 30, and behave as MANNER says when it runs.

    Manners: ok; slow; saves (checkpoints); stumbles (fails at its first attempt); halves (that too,
    with half an output written); fails; errs (an unexpected exception); impossible; kills (ends
    its process); breaks (WorkerBroken); litters (fails at its first attempt, and leaves a process
    behind that goes on writing beside its output); hangs (until its time is up); deaf (hangs, and
    no signal reaches its process).

    On a host that is sick, all fail.
    """

    name = "simulated"
    suffix = ".txt"

    def survey(self, path: str, options: Mapping[str, Any]) -> Source:
        stem, cost, manner = path.split(".")
        return Source(path, path, int(cost), {"inputs": 1}, detail=(stem, manner))

    def cut(
        self, sources: Sequence[Source], options: Mapping[str, Any], cost_max: int
    ) -> Iterator[Item]:
        for source in sources:
            stem, manner = source.detail
            payload = {"manner": manner, "seconds": source.cost / 10}
            yield Item(stem, manner, source.cost, {"key": source.key}, payload, {"inputs": 1})

    def run(self, work: Work) -> None:
        world = SIM.world
        manner = work.payload["manner"]
        me = world.me
        assert not SIM_OS.path.lexists(str(work.output)), "there is an output before the run"
        if me.host.sick:
            me.excuses.add(f"{work.id}.a{work.attempt}")
            raise ClaimFailed("the GPU of this host is broken")
        if manner == "saves":
            self._save(work)
        if manner in ("hangs", "deaf") and work.attempt < HANGS:
            self._hang(work, deaf=manner == "deaf" and me.guardian is not None)
        if manner == "litters" and work.attempt == 0:
            self._litter(work)
        for _ in range(3 if manner == "slow" else 1):
            world.sleep(work.payload["seconds"])
            if work.stopping:
                raise Interrupted("asked to stop")
            work.progress(1, 3, inputs=1)
        if manner in ("fails", "errs", "impossible", "breaks") or (
            manner in ("stumbles", "halves", "litters") and work.attempt == 0
        ):
            if manner == "halves":
                SIM_OS.close(SIM_OS.open(str(work.output), os.O_WRONLY | os.O_CREAT | os.O_EXCL))
            me.excuses.add(f"{work.id}.a{work.attempt}")
            if manner == "impossible":
                me.excuses.add(f"{work.id}.a{work.attempt} for good")
            self._fail(manner)
        if manner == "kills":
            me.excuses.add("dead")
            world.log("is killed", "")
            world.end(me)
            world.sleep(0.0)
        self._write(work)

    @staticmethod
    def _hang(work: Work, *, deaf: bool) -> None:
        """Hang. One that no signal reaches is ended by its guardian; if that ended, too, it is
        killed as an operator would.
        """
        world, me = SIM.world, SIM.world.me
        me.excuses.add(f"{work.id}.a{work.attempt}")
        me.deaf = deaf
        world.sleep(3 * work.timeout_s if deaf else 1e9)
        guardian = me.guardian
        if guardian is not None and guardian.alive and not (guardian.paused or me.paused):
            raise Violation(f"R16: {work.id} runs on, and its time was up long ago")
        me.excuses.add("dead")
        world.log("is killed", "")
        world.end(me)
        world.sleep(0.0)

    @staticmethod
    def _litter(work: Work) -> None:
        directory = os.path.dirname(str(work.output))
        child = SIM.world.start(SIM.world.me.host, "litter", litterer(directory))
        SIM.world.me.children.append(child)

    @staticmethod
    def _fail(manner: str) -> None:
        if manner == "errs":
            raise ZeroDivisionError("a handler's mistake")
        if manner == "impossible":
            raise ClaimImpossible("Impossible: it never will")
        if manner == "breaks":
            SIM.world.me.excuses.add("broken")
            raise WorkerBroken("this process is beyond repair")
        raise ClaimFailed("it did not go well")

    @staticmethod
    def _save(work: Work) -> None:
        there = work.checkpoints()
        for name, data in there.items():
            assert data == f"{work.id} {name}".encode(), f"checkpoint {name} holds {data!r}"
        for part in ("part0", "part1"):
            if part not in there:
                SIM.world.sleep(work.payload["seconds"])
                work.checkpoint(part, f"{work.id} {part}".encode())
            if work.stopping:
                raise Interrupted("asked to stop")

    @staticmethod
    def _write(work: Work) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        data = output_of(work.id)
        fd = SIM_OS.open(str(work.output), flags)
        for piece in (data[:12], data[12:]):
            SIM.world.sleep(work.payload["seconds"] / 4)
            SIM_OS.write(fd, piece)
        SIM_OS.close(fd)


# ---- bodies of processes ----


def litterer(directory: str) -> Any:
    """Return the body of a process that a handler left behind, and that makes files there."""

    def body(process: Process) -> int:
        for number in range(40):
            SIM.world.sleep(SIM.world.rng.uniform(0.0, 0.3))
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            try:
                SIM_OS.close(SIM_OS.open(f"{directory}/litter{process.pid}-{number}", flags))
            except OSError:
                if number > 20:
                    break
        return 0

    return body


def planner(
    inputs: Sequence[str],
    spools: Sequence[str],
    lease_s: float,
    attempts_max: int,
    timeout_s: float = 0.0,
) -> Any:
    """Return the body of `fsqueue plan`."""

    def body(process: Process) -> int:
        pool = create_pool(ROOT, lease_s=lease_s, attempts_max=attempts_max)
        wanted = [Spool(name, "cpu", 1.0 + index) for index, name in enumerate(spools)]
        request = PlanRequest(Simulated(), {}, list(inputs), wanted, timeout_s=timeout_s)
        plan_into(pool, request)
        return 0

    return body


def worker(workers: dict[str, Process], settings: WorkerSettings, *, guarded: bool = False) -> Any:
    """Return the body of `fsqueue work`, which adds its process to `workers` under its id."""

    def body(process: Process) -> int:
        pool = open_pool(ROOT)
        id = f"{process.host.name}-{process.name}"
        workers[id] = process
        if settings.spool not in (None, *spool_names(pool)):
            return 2
        process.worker = Worker(pool, settings, id=id, guarded=guarded)
        return int(process.worker.run())

    return body


def command(workers: dict[str, Process], name: str, *words: str, **options: Any) -> Any:
    """Return the body of a command that moves claims."""

    def body(process: Process) -> int:
        workers[identity(f"{name}-")] = process
        pool = open_pool(ROOT)
        if name == "recover":
            repair.recover(pool)
        elif name == "drain":
            if options.get("undo"):
                repair.undo_drain(pool, words)
            else:
                order = repair.Order.PAUSE if options.get("pause") else repair.Order.DRAIN
                repair.drain(pool, words, order=repair.Order.STOP if options.get("now") else order)
        elif name == "cancel":
            repair.cancel(pool, words)
        else:
            repair.retry(pool, words)
        return 0

    return body


def identity(prefix: str) -> str:
    """Return the id under which a command of the current process appears."""
    process = SIM.world.me
    return f"{prefix}{process.host.name}-{process.name}"


@contextmanager
def on_command_line() -> Iterator[None]:
    """Let what operators do appear under the name of their process."""
    with patch.object(repair, "new_worker_id", identity):
        yield


def status_deleter(rng: Random, seconds: float) -> Any:
    """Return the body of a process that deletes statuses and journals now and then (I8)."""

    def body(process: Process) -> int:
        world = SIM.world
        until = world.now + seconds
        while world.now < until:
            world.sleep(rng.uniform(0.5, 5.0))
            for place in ("status", "events"):
                try:
                    for name in SIM_OS.listdir(f"{ROOT}/{place}"):
                        if rng.random() < 0.5:
                            SIM_OS.unlink(f"{ROOT}/{place}/{name}")
                except OSError:
                    continue  # there is no pool yet, or the file is gone already
        return 0

    return body
