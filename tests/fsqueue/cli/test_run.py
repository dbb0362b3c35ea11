"""`fsqueue run`: a worker per seat, what it prints without a terminal, and its exit status."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import textwrap
from pathlib import Path

import pytest

from fsqueue import open_pool
from fsqueue.pool.layout import State
from fsqueue.pool.leases import lease_names
from fsqueue.pool.settings import PoolDirectory
from fsqueue.records.status import read_statuses
from tests.support.nvml.fake_driver import Driver
from tests.support.planning import FOREVER, counts, ids, make_inputs, names_in, plan_command
from tests.support.processes import (
    FSQUEUE,
    Start,
    alive,
    environment,
    fsqueue,
    leases_in,
    wait_for,
)

pytestmark = pytest.mark.slow

QUICK = ("--steal-interval", "0.2", "--interval", "0.2")


@pytest.fixture
def pool(tmp_path: Path) -> PoolDirectory:
    """Six claims in two spools."""
    inputs = make_inputs(tmp_path / "in", 6)
    return plan_command(tmp_path / "pool", inputs, ("cat", "{input}"), spools=("cpu0", "cpu1"))


def pid_of(worker: str) -> int:
    """Return the process id that a worker's identity carries."""
    return int(worker.split("-")[-2])


def test_a_pool_that_is_done_at_the_end_is_status_0(pool: PoolDirectory) -> None:
    run = fsqueue("run", pool.root, "--workers", "2", *QUICK)
    assert run.returncode == 0, run.stderr
    assert counts(pool) == {"done": 6}
    assert len(leases_in(pool)) == 2
    assert fsqueue("run", pool.root, *QUICK).returncode == 0


def test_a_run_keeps_the_metrics_log(pool: PoolDirectory) -> None:
    assert fsqueue("run", pool.root, "--workers", "2", *QUICK).returncode == 0
    header, *lines = Path(pool.root, "gpu_metrics.log").read_text().splitlines()
    assert header == "timestamp,gpu_id,sequences_per_sec,compute_percent,memory_percent"
    assert {line.split(",")[1] for line in lines} == {"cpu0", "cpu1"}


def test_a_run_keeps_a_log_of_where_the_time_of_its_handlers_goes(tmp_path: Path) -> None:
    code = """
        import time
        from fsqueue import Computing

        def run(work):
            work.progress(1, 1, tokens=500)
            work.note_computing(Computing(seconds=2.0, computing_s=1.5, feeding_s=0.5))
            work.output.write_text("done")
            time.sleep(0.8)  # a status is written every two seconds
    """
    (tmp_path / "mine.py").write_text(textwrap.dedent(code))
    inputs = make_inputs(tmp_path / "in", 6)
    words = ("plan", "python", tmp_path / "pool", *inputs, "--file", tmp_path / "mine.py")
    assert fsqueue(*words, "--gpus", "cpu").returncode == 0
    run = fsqueue("run", tmp_path / "pool", *QUICK)
    assert run.returncode == 0, run.stderr
    header, *lines = (tmp_path / "pool" / "time_use.log").read_text().splitlines()
    assert header.startswith("timestamp,gpu_id,tokens_per_sec,computing_percent,")
    assert any(line.split(",")[1:2] + line.split(",")[3:] == ["cpu0", "75.00", "25.00", "", ""]
               for line in lines)  # fmt: skip


def test_each_worker_gets_a_spool_in_turn(pool: PoolDirectory) -> None:
    run = fsqueue("run", pool.root, "--workers", "3", *QUICK)
    assert [run.stderr.count(f"spool {name} (as requested)") for name in ("cpu0", "cpu1")] == [2, 1]


def test_failed_claims_are_status_3(tmp_path: Path) -> None:
    argv = ("sh", "-c", "case $1 in *000) exit 1;; esac; echo fine", "sh", "{input}")
    pool = plan_command(tmp_path / "pool", make_inputs(tmp_path / "in", 3), argv)
    assert fsqueue("run", pool.root, *QUICK).returncode == 3
    assert counts(pool) == {"done": 2, "failed": 1}


def test_a_pool_without_spools_is_status_2(tmp_path: Path) -> None:
    pool = plan_command(tmp_path / "pool", make_inputs(tmp_path / "in", 1), FOREVER)
    os.unlink(pool.spool_file("cpu0"))
    run = fsqueue("run", pool.root)
    assert run.returncode == 2
    assert "has no spools" in run.stderr


def test_without_a_terminal_it_prints_lines_and_no_control_codes(pool: PoolDirectory) -> None:
    run = fsqueue("run", pool.root, "--workers", "2", *QUICK)
    assert run.stdout.strip(), "not a word about what was going on"
    assert "\x1b" not in run.stdout + run.stderr


def test_in_a_log_it_says_at_each_tenth_how_far_it_is(tmp_path: Path) -> None:
    script = "sleep 0.05; echo fine"
    inputs = make_inputs(tmp_path / "in", 40)
    pool = plan_command(tmp_path / "pool", inputs, ("sh", "-c", script, "sh", "{input}"))
    run = fsqueue("run", pool.root, "--workers", "1", "--interval", "0.05")
    assert run.returncode == 0, run.stderr
    *lines, last = run.stdout.splitlines()
    assert 1 <= len(lines) <= 9
    pattern = r"\d\d:\d\d:\d\d \d+% of the work done: \d+ of 40 done, .*, ETA "
    assert all(re.match(pattern, line) for line in lines), lines
    assert last.endswith("all: 40 of 40 done")


def test_quiet_is_the_totals_alone_and_the_workers_log_to_files(pool: PoolDirectory) -> None:
    run = fsqueue("run", pool.root, "--workers", "2", "--quiet", *QUICK)
    assert (run.returncode, run.stderr) == (0, "")
    assert re.fullmatch(r"\S+ all: 6 of 6 done\n", run.stdout)
    logs = [path.read_text() for path in Path(pool.root, "events").glob("run-*.log")]
    assert len(logs) == 2 and all("joined" in text or "spool cpu" in text for text in logs)


@pytest.mark.parametrize(
    "number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 75)]
)
def test_a_signal_goes_to_every_worker_once_and_all_claims_go_back(
    start: Start, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    inputs = make_inputs(tmp_path / "in", 4)
    pool = plan_command(tmp_path / "pool", inputs, FOREVER, spools=("cpu0", "cpu1"))
    run = start("run", pool.root, "--workers", "2", *QUICK)
    wait_for(lambda: len(ids(pool, State.RUNNING)) == 2, "two claims to run")
    workers = [pid_of(name.owner or "") for name in names_in(pool, State.RUNNING)]
    run.send(number)
    assert run.reap() == status
    assert counts(pool) == {"waiting": 4}
    assert sorted((n.attempt, n.returns) for n in names_in(pool, State.WAITING)) == [
        (0, 0),
        (0, 0),
        (0, 1),
        (0, 1),
    ]
    assert not any(map(alive, workers))
    assert not [name for name in lease_names(pool) if name.living]


def gated(tmp_path: Path, count: int) -> PoolDirectory:
    """Plan claims that end once tmp_path/gate is there, one for each of as many spools."""
    script = 'until [ -e "$2" ]; do sleep 0.02; done; echo fine'
    return plan_command(
        tmp_path / "pool",
        make_inputs(tmp_path / "in", count),
        ("sh", "-c", script, "sh", "{input}", str(tmp_path / "gate")),
        spools=[f"cpu{n}" for n in range(count)],
        lease_s=2.0,
    )


def test_r9_a_worker_that_is_killed_is_started_again(start: Start, tmp_path: Path) -> None:
    """There is no other that could take over its claim."""
    pool = gated(tmp_path, 1)
    run = start("run", pool.root, "--workers", "1", *QUICK)
    first = wait_for(lambda: names_in(pool, State.RUNNING), "the claim to run")[0].owner or ""
    os.kill(pid_of(first), signal.SIGKILL)
    wait_for(
        lambda: [name for name in names_in(pool, State.RUNNING) if name.owner != first],
        "another worker to run it",
    )
    (tmp_path / "gate").touch()
    assert run.reap() == 0
    assert "was killed by signal 9; it is started again" in run.log
    assert [name.attempt for name in names_in(pool, State.DONE)] == [1]


def test_r9_a_holder_that_dies_after_its_peers_left_strands_nothing(
    start: Start, tmp_path: Path
) -> None:
    pool = gated(tmp_path, 1)
    run = start("run", pool.root, "--workers", "2", *QUICK)
    first = wait_for(lambda: names_in(pool, State.RUNNING), "the claim to run")[0].owner or ""
    left = lambda: "still runs elsewhere" in run.log  # noqa: E731
    wait_for(left, "the other worker to leave")
    os.kill(pid_of(first), signal.SIGKILL)
    (tmp_path / "gate").touch()
    assert run.reap() == 0
    assert counts(pool) == {"done": 1}


def test_r9_a_closed_terminal_ends_a_run_and_its_workers_uncharged(
    start: Start, tmp_path: Path
) -> None:
    pool = gated(tmp_path, 2)
    run = start("run", pool.root, "--workers", "2", *QUICK)
    wait_for(lambda: len(ids(pool, State.RUNNING)) == 2, "two claims to run")
    workers = [pid_of(name.owner or "") for name in names_in(pool, State.RUNNING)]
    run.send(signal.SIGHUP)
    assert run.reap() == 129
    assert not any(map(alive, workers))
    assert counts(pool) == {"waiting": 2}
    assert {name.attempt for name in names_in(pool, State.WAITING)} == {0}


def test_r9_a_pipe_without_a_reader_ends_no_worker(tmp_path: Path) -> None:
    pool = gated(tmp_path, 1)
    reading, writing = os.pipe()
    run = subprocess.Popen(
        [*FSQUEUE, "run", pool.root, "--workers", "1", "--interval", "0.1", *QUICK],
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writing)
    wait_for(lambda: ids(pool, State.RUNNING), "the claim to run")
    os.close(reading)
    (tmp_path / "gate").touch()
    _, log = run.communicate(timeout=60)
    assert run.returncode == 0, log
    assert counts(pool) == {"done": 1}


def test_r9_a_second_run_reports_the_workers_that_live_here_already(
    start: Start, tmp_path: Path
) -> None:
    pool = gated(tmp_path, 2)
    worker = start("work", pool.root, "--steal-interval", "0.2")
    wait_for(lambda: ids(pool, State.RUNNING), "a claim to run")
    run = start("run", pool.root, "--workers", "1", *QUICK)
    wait_for(lambda: len(ids(pool, State.RUNNING)) == 2, "two claims to run")
    (tmp_path / "gate").touch()
    assert run.reap() == 0
    assert f"a worker of this pool runs here already (process {worker.pid})" in run.log


def test_a_drained_run_is_status_75(start: Start, tmp_path: Path) -> None:
    pool = plan_command(tmp_path / "pool", make_inputs(tmp_path / "in", 2), FOREVER, lease_s=2.0)
    run = start("run", pool.root, *QUICK)
    wait_for(lambda: ids(pool, State.RUNNING), "a claim to run")
    assert fsqueue("drain", pool.root, "--now").returncode == 0
    assert run.reap() == 75
    assert counts(pool) == {"waiting": 2}


def test_no_work_stealing_is_handed_on(pool: PoolDirectory) -> None:
    run = fsqueue("run", pool.root, "--workers", "1", "--no-work-stealing", *QUICK)
    assert run.returncode == 5, run.stderr
    assert counts(pool) == {"done": 3, "waiting": 3}
    assert "work stealing disabled" in run.stderr


def test_nothing_but_usage_is_wrong_with_zero_workers(pool: PoolDirectory) -> None:
    assert fsqueue("run", pool.root, "--workers", "0").returncode == 2
    assert counts(pool) == {"waiting": 6}


# ---- several workers per GPU ----


def environ_of(driver: Driver, **more: str) -> dict[str, str]:
    """Return what makes every GPU of a fake driver visible to a child."""
    return driver.environ | {"CUDA_VISIBLE_DEVICES": "0,1"} | more


@pytest.fixture
def cards(tmp_path: Path) -> Driver:
    """Two equal cards."""
    (tmp_path / "driver").mkdir()
    driver = Driver(tmp_path / "driver")
    for index in range(2):
        driver.add(index, "NVIDIA GeForce RTX 3090", f"GPU-{index}")
    return driver


@pytest.fixture
def shown(tmp_path: Path) -> PoolDirectory:
    """Eight claims, in a spool for each card, whose outputs say what the program was given."""
    script = 'echo "$CUDA_VISIBLE_DEVICES $FSQUEUE_PER_GPU"'
    return plan_command(
        tmp_path / "pool",
        make_inputs(tmp_path / "in", 8),
        ("sh", "-c", script, "sh", "{input}"),
        spools=("gpu0", "gpu1"),
        model="RTX 3090",
    )


def workers_by_gpu(pool: PoolDirectory) -> dict[str, list[tuple[str | None, float]]]:
    """Return the spool and the weight of each worker there was, by its GPU."""
    found: dict[str, list[tuple[str | None, float]]] = {}
    for status in read_statuses(pool).values():
        found.setdefault(status.gpu["uuid"], []).append((status.spool, status.weight))
    return found


def test_workers_per_gpu_share_the_gpu_and_its_spool(cards: Driver, shown: PoolDirectory) -> None:
    run = fsqueue("run", shown.root, "--per-gpu", "2", *QUICK, env=environ_of(cards))
    assert run.returncode == 0, run.stderr
    assert "2 workers for each of 2 GPUs; without MPS they take turns" in run.stderr
    assert run.stderr.count("2 workers share this GPU, GPU-1") == 2
    found = workers_by_gpu(shown)
    assert {gpu: len(each) for gpu, each in found.items()} == {"GPU-0": 2, "GPU-1": 2}
    assert {len(set(each)) for each in found.values()} == {1}, "one spool for both"
    assert {weight for each in found.values() for _, weight in each} == {0.5}
    outputs = [path.read_text() for path in Path(shown.root, "outputs").iterdir() if path.is_file()]
    assert {text.split()[0] for text in outputs} <= {"GPU-0", "GPU-1"}
    assert {text.split()[1] for text in outputs} == {"2"}


def test_a_worker_that_dies_is_named_with_its_gpu(
    start: Start, cards: Driver, tmp_path: Path
) -> None:
    pool = gated(tmp_path, 2)
    run = start("run", pool.root, "--per-gpu", "1", *QUICK, env=environ_of(cards))
    wait_for(lambda: len(ids(pool, State.RUNNING)) == 2, "two claims to run")
    facts = json.loads(fsqueue("workers", pool.root, "--json").stdout)["workers"]
    assert {(each["gpu_uuid"], each["gpu_workers"]) for each in facts} == {
        ("GPU-0", 1), ("GPU-1", 1)
    }  # fmt: skip
    victim = next(each for each in facts if each["gpu_uuid"] == "GPU-1")
    os.kill(pid_of(victim["id"]), signal.SIGKILL)
    wait_for(lambda: "(GPU-1) was killed by signal 9" in run.log, "the report of its death")
    (tmp_path / "gate").touch()
    assert run.reap() == 0


def test_python_takes_per_gpu_too(cards: Driver, shown: PoolDirectory) -> None:
    code = f"import fsqueue; exit(fsqueue.open_pool({shown.root!r}).run(per_gpu=3, interval_s=0.2))"
    env = environment(environ_of(cards))
    done = subprocess.run([FSQUEUE[0], "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {gpu: len(each) for gpu, each in workers_by_gpu(shown).items()} == {
        "GPU-0": 3, "GPU-1": 3
    }  # fmt: skip


def test_every_mig_instance_has_a_worker(tmp_path: Path, cards: Driver) -> None:
    """Also where CUDA, which shows a process one instance only, would see the first alone."""
    cards.set(0, mig=1)
    for place, profile in ((0, "1g.5gb"), (2, "3g.20gb")):
        cards.add(f"0/{place}", f"NVIDIA A100-SXM4-40GB MIG {profile}", f"MIG-{place}", gib=5)
    env = environ_of(cards)
    del env["CUDA_VISIBLE_DEVICES"]
    words = [tmp_path / "in", "--", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES", "sh", "{input}"]
    make_inputs(tmp_path / "in", 6)
    unset = ["env", "-u", "CUDA_VISIBLE_DEVICES", *FSQUEUE]
    for more in (["plan", "command", tmp_path / "pool", *words], ["run", tmp_path / "pool"]):
        done = subprocess.run(
            [*unset, *more], env=os.environ | env, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
    pool = open_pool(tmp_path / "pool")
    found = workers_by_gpu(pool)
    assert sorted(found) == ["GPU-1", "MIG-0", "MIG-2"]
    assert found["MIG-0"] == [("gpu0", 0.17)] and found["MIG-2"] == [("gpu1", 0.51)]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--per-gpu", "2"), "no GPU is visible here .*For 2 workers on the CPU: --workers 2"),
        (("--per-gpu", "2", "--workers", "2"), "give one of them"),
        (("--per-gpu", "0"), "0 is not in the range"),
    ],
)
def test_per_gpu_is_about_gpus_and_says_so(
    pool: PoolDirectory, words: tuple[str, ...], reason: str
) -> None:
    run = fsqueue("run", pool.root, *words)
    assert run.returncode == 2
    assert re.search(reason, run.stderr.splitlines()[-1]), run.stderr
    assert counts(pool) == {"waiting": 6} and not leases_in(pool)


def test_workers_on_the_cpu_do_not_inherit_a_share(pool: PoolDirectory) -> None:
    run = fsqueue("run", pool.root, "--workers", "1", *QUICK, env={"FSQUEUE_PER_GPU": "4"})
    assert run.returncode == 0, run.stderr
