"""Every command of fsqueue itself, and what it is tried on (see `crash_cases.py`)."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from fsqueue.broadcast import broadcast
from fsqueue.errors import ClaimFailed
from fsqueue.handler import Work, load_handler
from fsqueue.maintenance.audit import audit_pool
from fsqueue.metrics.log_file import HEADER
from fsqueue.pool.claims import any_failed
from fsqueue.pool.inbox import bounce, inbox_of
from fsqueue.pool.layout import State
from fsqueue.pool.leases import lease_names
from fsqueue.pool.requirements import Tier
from fsqueue.pool.settings import PoolDirectory, open_pool
from fsqueue.records.checksums import Checksums, measure
from fsqueue.storage import atomic
from fsqueue.worker.attempts.verdicts import Cause
from tests.support.crash import crash, die_after
from tests.support.crash_cases import Reads, Writes, check_settles, settle
from tests.support.planning import make_inputs, plan_command
from tests.support.planning import plan as plan_into_pool
from tests.support.pools import (
    ManualWorker,
    Trivial,
    make_pool,
    names_in,
    only_claim,
    plan,
    state_counts,
    work_until_done,
)

COPY: Final = ("cp", "{input}", "{output}")


class Unlucky(Trivial):
    """Fail every claim."""

    def run(self, work: Work) -> None:
        raise ClaimFailed("no luck")


def pool_of(site: Path) -> PoolDirectory:
    return open_pool(f"{site}/pool")


# ---- before ----


def inputs(site: Path, _shared: Path) -> None:
    """Two files, and no pool yet."""
    make_inputs(site.parent / "in", 2)


def waiting(site: Path, _shared: Path) -> None:
    """Two claims that wait."""
    make_pool(site / "pool", "a.3", "b.2", lease_s=0.4)


def programs(site: Path, _shared: Path) -> None:
    """Two claims that run a program."""
    plan_command(site / "pool", make_inputs(site.parent / "in", 2), COPY, lease_s=0.4)


def a_function(site: Path, shared: Path) -> None:
    """Two files, a Python file that copies one, and no pool yet."""
    inputs(site, shared)
    (site.parent / "copy_it.py").write_text(
        "def run(work):\n    work.output.write_bytes(work.input.read_bytes())\n"
    )


def done(site: Path, shared: Path) -> None:
    """Three claims that are done; one is a tar of what was made from two inputs."""
    programs(site, shared)
    later = site.parent / "later"
    later.mkdir(exist_ok=True)
    options = {"argv": list(COPY), "grace": 1.0, "per_claim": 2}
    files = make_inputs(later, 2)
    pool, _ = plan_into_pool(site / "pool", load_handler("command"), files, options, lease_s=0.4)
    work_until_done(pool, handler=load_handler("command"))


def at_work(site: Path, shared: Path) -> None:
    """A pool of which one claim is done, and another input."""
    programs(site, shared)
    hand = ManualWorker(pool_of(site), handler=load_handler("command"))
    hand.run(hand.take())
    hand.leave()
    (site.parent / "in" / "later").write_text("later")


def damaged(site: Path, shared: Path) -> None:
    """Four claims: one done, one done with an emptied output, one copied, one lost."""
    files = make_inputs(site.parent / "in", 4)
    pool = plan_command(site / "pool", files, COPY, lease_s=0.4)
    hand = ManualWorker(pool, handler=load_handler("command"))
    records = Checksums(pool, hand.id)
    for _ in range(2):
        taken = hand.take()
        hand.run(taken)
        output = Path(pool.output(taken.id, ".out"))
        records.record(output.name, measure(output))
    records.close()
    hand.leave()
    output.write_bytes(b"")
    lost, copied_one = names_in(pool, State.WAITING)
    Path(pool.waiting("cpu0", lost)).unlink()
    copy = replace(copied_one, returns=3)
    shutil.copy(pool.waiting("cpu0", copied_one), pool.waiting("cpu0", copy))


def changed(site: Path, shared: Path) -> None:
    """Two claims that wait, and an input that changed since it was planned."""
    programs(site, shared)
    path = min((site.parent / "in").iterdir())
    path.write_text("changed, and longer than it was before")


def hopeless(site: Path, _shared: Path) -> None:
    """One claim whose program fails, at its last attempt."""
    plan_command(
        site / "pool",
        make_inputs(site.parent / "in", 1),
        ("test", "-d", "{input}"),
        lease_s=0.4,
        attempts=1,
    )


def finished(site: Path, _shared: Path) -> None:
    """A pool with a done and a failed claim, and the journal of their worker."""
    pool = make_pool(site / "pool", "a.3", "b.2", attempts=1)
    hand = ManualWorker(pool)
    hand.beat.flush()
    hand.run(hand.take())
    hand.handler = Unlucky()
    assert hand.run(hand.take()) is Cause.FAILED
    hand.leave()


def left_by_the_dead(site: Path, _shared: Path) -> None:
    """One worker died before its output was published, another one after that."""
    pool = make_pool(site / "pool", "a.3", "b.2", "c.1")

    def take_and_die() -> None:
        ManualWorker(pool).take()
        id = ManualWorker(pool).take().id
        Path(pool.output(id, ".txt")).write_text(id)

    die_after(take_and_die)


def with_leftovers(site: Path, _shared: Path) -> None:
    """A plan without a number, a dead worker's scratch and an order to it, half a file."""
    pool = make_pool(site / "pool", "a.3", "b.2", lease_s=0.2)
    assert crash(lambda: plan(pool, "c.4", "d.5"), 12)
    lost = ManualWorker(pool)
    Path(pool.scratch(lost.id), "half").write_text("half")
    lost.beat.flush()
    atomic.publish(pool.order("pause", lost.id), b"")
    lost.lease.retire()
    Path(pool.directory("errors"), ".x.json.999999-0123456789ab").write_bytes(b"half")


def listening(site: Path, _shared: Path) -> None:
    """Two live workers: this process."""
    pool = make_pool(site / "pool", "a.3", "b.2")
    for _ in range(2):
        hand = ManualWorker(pool)
        hand.status.tier = Tier.CPU
        hand.beat.flush()


def addressed(site: Path, shared: Path) -> None:
    """A broadcast to two workers that died before they looked."""
    listening(site, shared)
    pool = pool_of(site)
    broadcast.broadcast(pool, broadcast.BroadcastRequest("evict", {}))
    for name in lease_names(pool):
        os.rename(pool.lease(name), f"{pool.directory('workers')}/{name.worker}.left")


def ordered_to_leave(site: Path, shared: Path) -> None:
    """Workers are ordered to drain, and to stop."""
    waiting(site, shared)
    for order in ("drain", "stop"):
        atomic.publish(pool_of(site).order(order), b"")


def with_sbatch(site: Path, shared: Path) -> None:
    """An sbatch that takes everything."""
    waiting(site, shared)
    program = site / "bin" / "sbatch"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\ncat > /dev/null; echo 17\n")
    program.chmod(0o755)


# ---- after ----


def copied(site: Path) -> None:
    """Assert that every input was copied once."""
    check_settles("command")(site)
    pool = pool_of(site)
    outputs = sorted(path.read_text() for path in Path(pool.directory("outputs")).iterdir())
    assert outputs == sorted(path.read_text() for path in (site.parent / "in").iterdir())


def copied_by_the_function(site: Path) -> None:
    """Assert that every input was copied once, by the file that the pool keeps."""
    check_settles("python")(site)
    pool = pool_of(site)
    outputs = sorted(path.read_text() for path in Path(pool.directory("outputs")).iterdir())
    assert outputs == sorted(path.read_text() for path in (site.parent / "in").iterdir())
    assert len(list(Path(pool.code()).iterdir())) == 1


def laid_out(site: Path) -> None:
    """Assert that each output is there whole, and nothing else."""
    found = {str(p.relative_to(site / "out")): p for p in (site / "out").rglob("*") if p.is_file()}
    names = [f"{folder}/in00{n}.out" for folder in ("in", "later") for n in (0, 1)]
    assert sorted(found) == names
    for name, path in found.items():
        assert path.read_text() == (site.parent / name.removesuffix(".out")).read_text()


def failed_with_its_record(site: Path) -> None:
    check_settles("command")(site)
    name = only_claim(pool_of(site), State.FAILED)
    record = json.loads(Path(pool_of(site).error(name.id, name.attempt)).read_bytes())
    assert record["attempt"] == 0 and record["worker"] == name.owner


def given_up(site: Path) -> None:
    """Assert that no claim counts as failed any more."""
    pool = pool_of(site)
    assert not any_failed(pool) and len(names_in(pool, State.FAILED)) == 1
    assert audit_pool(pool).problems == []


def repaired(site: Path) -> None:
    """Assert that every input is copied once, after a worker came, and that nothing was removed."""
    pool = pool_of(site)
    assert audit_pool(pool).problems == []
    work_until_done(pool, handler=load_handler("command"))
    outputs = sorted(path.read_text() for path in Path(pool.directory("outputs")).iterdir())
    assert outputs == sorted(path.read_text() for path in (site.parent / "in").iterdir())
    assert state_counts(pool) == {"done": 4} and audit_pool(pool).problems == []
    assert len(list(Path(pool.set_aside).iterdir())) == 2


def replaced(site: Path) -> None:
    """Assert that the claim of the former version was superseded, once, and the others run."""
    assert state_counts(pool_of(site)) == {"spools": 2, "failed": 1}
    check_settles("command")(site)
    pool = pool_of(site)
    assert not any_failed(pool) and state_counts(pool) == {"done": 2, "failed": 1}


def cancelled(site: Path) -> None:
    """Assert that nothing is left to do, and that the reason is reported."""
    from tests.support.disk_states import run_command

    pool = pool_of(site)
    assert names_in(pool, State.WAITING) == []
    ended = {name.id for name in names_in(pool, State.FAILED)}
    status, said = run_command(["failed", pool.root, "--json"])
    failed = json.loads(said)["failed"]
    assert status == 0 and {each["id"] for each in failed} == ended and len(ended) == 2
    assert all("cancelled" in each["errors"][-1]["error"] for each in failed)
    settle(site / "pool")


def undone(site: Path) -> None:
    assert atomic.names(pool_of(site).directory("control")) == []
    settle(site / "pool")


def ordered(site: Path) -> None:
    assert atomic.names(pool_of(site).directory("control")) == ["drain"]
    settle(site / "pool")


def heard(site: Path) -> None:
    """Assert that every copy is whole: its worker leaves, and each ends once, with a reason."""
    pool = pool_of(site)
    living = [name.worker for name in lease_names(pool) if name.living]
    for worker in living:
        bounce(pool, worker, worker, "it left")
    for name in lease_names(pool):
        if name.living:
            os.rename(pool.lease(name), f"{pool.directory('workers')}/{name.worker}.left")
    inbox = inbox_of(pool)
    ended = list(names_in(inbox, State.FAILED))
    assert state_counts(inbox).keys() <= {"failed"} and len({name.id for name in ended}) == len(
        ended
    )
    assert all(os.path.exists(inbox.error(name.id, 0)) for name in ended)
    settle(site / "pool")


def measured(site: Path) -> None:
    """Assert that the log has its header, and no line that is none."""
    lines = (site / "pool" / "gpu_metrics.log").read_text().splitlines()
    assert lines[0] == HEADER and len(lines) >= 2 and lines[-1].count(",") == 4


def exposed(site: Path) -> None:
    assert "fsqueue_finished" in (site / "pool.prom").read_text()


def page(name: str, end: str) -> Any:
    """Return a check that a file is whole."""

    def whole(site: Path) -> None:
        assert (site / name).read_text().rstrip().endswith(end)
        assert [path.name for path in site.iterdir() if path.name not in (name, "pool")] == []

    return whole


WRITES: Final = {
    "plan command": Writes(
        "plan command SITE/pool SITE/../in --gpus cpu -- cp {input} {output}", inputs, copied
    ),
    "plan command (into a pool at work)": Writes(
        "plan command SITE/pool SITE/../in --gpus cpu -- cp {input} {output}", at_work, copied
    ),
    "plan python": Writes(
        "plan python SITE/pool SITE/../in --file SITE/../copy_it.py --gpus cpu", a_function,
        copied_by_the_function,
    ),
    "outputs (linked)": Writes("outputs SITE/pool --link SITE/out", done, laid_out),
    "plan rag_ingestion": Writes(
        "plan rag_ingestion SITE/pool SITE/../in --gpus cpu",
        inputs,
        check_settles(done=0),
        status=1,
        again_status=frozenset({1}),
    ),
    "work": Writes("work SITE/pool", programs, copied, again=""),
    "work (the last attempt fails)": Writes(
        "work SITE/pool", hopeless, failed_with_its_record, again="", status=3
    ),
    "run": Writes("run SITE/pool --workers 1", programs, copied, again=""),
    "recover": Writes("recover SITE/pool", left_by_the_dead, check_settles(done=3)),
    "retry": Writes("retry SITE/pool", finished, check_settles(done=2)),
    "forget": Writes("forget SITE/pool --all", finished, given_up),
    "check (repair)": Writes("check SITE/pool --repair", damaged, repaired, intact=False),
    "plan command (a changed input)": Writes(
        "plan command SITE/pool SITE/../in --gpus cpu -- cp {input} {output}", changed, replaced
    ),
    "cancel": Writes("cancel SITE/pool --all", waiting, cancelled),
    "cancel (what runs)": Writes("cancel SITE/pool --all", left_by_the_dead, check_settles()),
    "drain": Writes("drain SITE/pool", waiting, ordered),
    "drain (taken back)": Writes("drain SITE/pool --undo", ordered_to_leave, undone),
    "broadcast": Writes(
        "broadcast SITE/pool --job-type evict --job-data {}", listening, heard
    ),
    "broadcast (waits for the dead)": Writes(
        "broadcast SITE/pool --show last --wait --timeout 1s", addressed, heard, status=3,
        again_status=frozenset({3}),
    ),
    "clean": Writes("clean SITE/pool --all", with_leftovers, check_settles(done=2)),
    "watch (metrics)": Writes(
        "watch SITE/pool --once --metrics-only", waiting, measured, status=5,
        again_status=frozenset({5}),
    ),
    "watch (textfile)": Writes(
        "watch SITE/pool --once --json --textfile SITE/pool.prom", waiting, exposed, status=5,
        again_status=frozenset({5}), rough=("pool.prom",),
    ),
    "report": Writes(
        "report SITE/pool -o SITE/r.html", finished, page("r.html", "</html>"), rough=("r.html",)
    ),
    "trace": Writes("trace SITE/pool -o SITE/t.json", finished, page("t.json", "]}")),
    "doctor": Writes("doctor SITE", inputs, again=""),
}  # fmt: skip

READS: Final = {
    "outputs": Reads("outputs SITE/pool", done),
    "script": Reads("script SITE/pool --for sge", waiting),
    "slurm": Reads("slurm SITE/pool", with_sbatch),
    "status": Reads("status SITE/pool", waiting, 5),
    "workers": Reads("workers SITE/pool --all", left_by_the_dead),
    "services": Reads("services SITE/pool", listening),
    "wait": Reads("wait SITE/pool", finished, 3),
    "watch": Reads("watch SITE/pool --once", left_by_the_dead, 5),
    "failed": Reads("failed SITE/pool", finished),
    "joblog": Reads("joblog SITE/pool", finished),
    "trace (to stdout)": Reads("trace SITE/pool", finished),
    "report (to stdout)": Reads("report SITE/pool", finished),
    "explain": Reads("explain SITE/pool none-of-these", left_by_the_dead, 1),
    "explain (a need)": Reads('explain SITE/pool --need {"service":"x"}', listening),
    "check": Reads("check SITE/pool", left_by_the_dead),
    "check (deep)": Reads("check SITE/pool --deep", damaged, 1),
    "check (repair, dry run)": Reads("check SITE/pool --repair --dry-run", damaged, 1),
    "explain (an input)": Reads("explain SITE/pool SITE/../in/in000", at_work),
    "forget (dry run)": Reads("forget SITE/pool --all --dry-run", finished),
    "gpus": Reads("gpus", waiting),
    "broadcast (shown)": Reads("broadcast SITE/pool --show last", addressed),
    "plan command (dry run)": Reads(
        "plan command SITE/pool SITE/../in --gpus cpu --dry-run -- cp {input} {output}", programs
    ),
    "retry (dry run)": Reads("retry SITE/pool --dry-run", finished),
    "cancel (dry run)": Reads("cancel SITE/pool --all --dry-run", waiting),
    "clean (dry run)": Reads("clean SITE/pool --all --dry-run", with_leftovers),
}
