"""`fsqueue plan` as it is typed: what it prints, what it refuses, what it leaves alone."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from fsqueue.pool.layout import State
from fsqueue.pool.settings import open_pool
from tests.support.planning import counts, ids, make_inputs
from tests.support.processes import Start, fsqueue, wait_for

pytestmark = pytest.mark.slow

CAT = ("--", "cat", "{input}")


@pytest.fixture
def inputs(tmp_path: Path) -> list[Path]:
    return make_inputs(tmp_path / "in", 8)


def plan(*words: str | Path, gpus: str = "cpux2") -> dict[str, object]:
    """Plan with --json; return the document."""
    run = fsqueue("plan", "command", *words, "--gpus", gpus, "--json", *CAT)
    assert run.returncode == 0, run.stderr
    document: dict[str, object] = json.loads(run.stdout)
    return document


def tree(root: Path) -> dict[str, bytes]:
    """Return every file below `root` with its content."""
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


# ---- what it does ----


def test_a_plan_shows_a_row_per_spool_and_what_to_type_next(
    tmp_path: Path, inputs: list[Path]
) -> None:
    run = fsqueue("plan", "command", tmp_path / "pool", *inputs, "--gpus", "4090,3090", *CAT)
    assert run.returncode == 0, run.stderr
    header, first, second, total, *rest = run.stdout.splitlines()
    assert header.split() == ["SPOOL", "GPU", "WEIGHT", "CLAIMS", "INPUTS", "COST", "SHARE"]
    assert first.split()[:4] == ["gpu0", "RTX", "4090", "1.50"]
    assert second.split()[:4] == ["gpu1", "RTX", "3090", "1.00"]
    assert total.split()[:3] == ["total", "8", "8"]
    assert any("8 claims planned" in line for line in rest)
    assert f"fsqueue run {tmp_path}/pool" in rest[-1]


def test_a_dry_run_prints_the_same_table_and_touches_nothing(
    tmp_path: Path, inputs: list[Path]
) -> None:
    words = ["plan", "command", tmp_path / "pool", *inputs, "--gpus", "cpux2"]
    dry = fsqueue(*words, "--dry-run", *CAT)
    assert dry.returncode == 0, dry.stderr
    assert not (tmp_path / "pool").exists()
    real = fsqueue(*words, *CAT)
    assert dry.stdout.splitlines()[:4] == real.stdout.splitlines()[:4]
    assert "8 claims would be planned" in dry.stdout


def test_a_dry_run_into_a_pool_with_plans_changes_no_byte(
    tmp_path: Path, inputs: list[Path]
) -> None:
    plan(tmp_path / "pool", *inputs[:4])
    before = tree(tmp_path / "pool")
    run = fsqueue("plan", "command", tmp_path / "pool", *inputs, "--dry-run", *CAT)
    assert "4 claims would be planned; 4 inputs planned before" in run.stdout
    assert tree(tmp_path / "pool") == before


def test_planning_the_same_inputs_again_adds_nothing(tmp_path: Path, inputs: list[Path]) -> None:
    first = plan(tmp_path / "pool", *inputs)
    again = plan(tmp_path / "pool", *inputs)
    assert (first["total"]["claims"], again["total"]["claims"]) == (8, 0)  # type: ignore[index]
    assert again["already"] == 8
    assert again["number"] is None
    assert counts(open_pool(str(tmp_path / "pool"))) == {"waiting": 8}


def test_another_program_over_the_same_inputs_is_other_work(
    tmp_path: Path, inputs: list[Path]
) -> None:
    plan(tmp_path / "pool", *inputs)
    run = fsqueue("plan", "command", tmp_path / "pool", *inputs, "--", "wc", "-c", "{input}")
    assert "8 claims planned" in run.stdout


def test_new_inputs_can_be_planned_while_a_worker_runs(
    start: Start, tmp_path: Path, inputs: list[Path]
) -> None:
    plan(tmp_path / "pool", *inputs[:4])
    pool = open_pool(str(tmp_path / "pool"))
    worker = start("work", pool.root, "--linger", "30", "--steal-interval", "0.2")
    wait_for(lambda: counts(pool) == {"done": 4}, "the first four claims to be done")
    plan(tmp_path / "pool", *inputs)
    wait_for(lambda: counts(pool) == {"done": 8}, "the claims planned later to be done")
    assert not worker.ended()
    assert fsqueue("check", pool.root).returncode == 0


def test_two_planners_at_once_plan_each_input_once(
    start: Start, tmp_path: Path, inputs: list[Path]
) -> None:
    words = ["plan", "command", tmp_path / "pool", *inputs, "--gpus", "cpux2", *CAT]
    planners = [start(*words) for _ in range(3)]
    assert [planner.reap() for planner in planners] == [0, 0, 0]
    assert sorted("8 claims planned" in planner.stdout for planner in planners) == [
        False,
        False,
        True,
    ]
    pool = open_pool(str(tmp_path / "pool"))
    assert len(set(ids(pool, State.WAITING))) == len(ids(pool, State.WAITING)) == 8
    assert fsqueue("check", pool.root).returncode == 0


def test_the_pool_keeps_the_settings_of_its_first_plan(tmp_path: Path, inputs: list[Path]) -> None:
    words = ["plan", "command", tmp_path / "pool"]
    settings = ["--gpus", "cpu", "--lease", "1m30s", "--attempts", "5"]
    assert fsqueue(*words, inputs[0], *settings, *CAT).returncode == 0
    assert fsqueue(*words, inputs[1], "--lease", "5s", "--attempts", "2", *CAT).returncode == 2
    assert fsqueue(*words, inputs[1], *CAT).returncode == 0
    pool = open_pool(str(tmp_path / "pool"))
    assert (pool.lease_s, pool.attempts_max) == (90.0, 5)


def test_later_plans_use_the_spools_that_are_there(tmp_path: Path, inputs: list[Path]) -> None:
    plan(tmp_path / "pool", *inputs[:4], gpus="4090,3090")
    run = fsqueue("plan", "command", tmp_path / "pool", *inputs, "--json", *CAT)
    assert [spool["name"] for spool in json.loads(run.stdout)["spools"]] == ["gpu0", "gpu1"]


def test_json_is_one_document_with_these_keys(tmp_path: Path, inputs: list[Path]) -> None:
    document = plan(tmp_path / "pool", *inputs)
    assert document.keys() >= {
        "pool", "dry_run", "spools", "shares", "total", "cost_max", "largest", "already", "bad",
        "notes", "number",
    }  # fmt: skip
    assert document["pool"] == str(tmp_path / "pool")
    assert document["number"] == 1
    shares = document["shares"]
    assert isinstance(shares, dict)
    assert sum(share["claims"] for share in shares.values()) == 8


@pytest.mark.parametrize("flag, expected", [("--gpu-weighted", 1.5), ("--no-gpu-weighted", 1.0)])
def test_shares_follow_the_weights_unless_told_otherwise(
    tmp_path: Path, flag: str, expected: float
) -> None:
    paths = make_inputs(tmp_path / "in", 50)
    for path in paths:
        path.write_text("x" * 100)
    words = ["plan", "command", tmp_path / "pool", *paths, "--gpus", "4090,3090", flag, "--json"]
    shares = json.loads(fsqueue(*words, *CAT).stdout)["shares"]
    assert shares["gpu0"]["claims"] / shares["gpu1"]["claims"] == pytest.approx(expected, rel=0.05)


# ---- inputs ----


def test_an_input_is_a_file_a_directory_or_a_list_of_paths(
    tmp_path: Path, inputs: list[Path]
) -> None:
    (tmp_path / "in" / ".hidden").write_text("x")
    (tmp_path / "in" / "subdirectory").mkdir()
    (tmp_path / "list").write_text(f"# a comment\n\nin/in000\n{tmp_path}/elsewhere\n")
    (tmp_path / "elsewhere").write_text("x")
    document = plan(tmp_path / "pool", tmp_path / "in", f"@{tmp_path}/list")
    assert document["total"]["claims"] == 9  # type: ignore[index]


def test_the_pool_may_come_from_the_environment(tmp_path: Path, inputs: list[Path]) -> None:
    env = {"FSQUEUE_POOL": str(tmp_path / "pool")}
    run = fsqueue("plan", "command", *inputs, "--gpus", "cpu", *CAT, env=env)
    assert run.returncode == 0, run.stderr
    assert fsqueue("work", env=env).returncode == 0
    assert counts(open_pool(str(tmp_path / "pool"))) == {"done": 8}


def test_the_words_after_the_dashes_are_the_programs_alone(
    tmp_path: Path, inputs: list[Path]
) -> None:
    tail = ["--", "sh", "-c", "echo $0 $2", "--json", "{input}", "--", "--dry-run"]
    run = fsqueue("plan", "command", tmp_path / "pool", inputs[0], "--gpus", "cpu", *tail)
    assert run.returncode == 0, run.stderr
    assert fsqueue("work", tmp_path / "pool").returncode == 0
    (output,) = (tmp_path / "pool" / "outputs").glob("*.out")
    assert output.read_text() == "--json --\n"


# ---- what it refuses ----


def test_what_was_planned_stays_when_another_input_is_bad(
    tmp_path: Path, inputs: list[Path]
) -> None:
    run = fsqueue("plan", "command", tmp_path / "pool", *inputs, tmp_path / "none",
                  "--gpus", "cpu", *CAT)  # fmt: skip
    assert run.returncode == 1
    assert "8 claims planned" in run.stdout
    assert fsqueue("work", tmp_path / "pool").returncode == 0


@pytest.mark.parametrize(
    "words, complaint",
    [
        (["plan", "command", "POOL"], "no INPUT was given"),
        (["plan", "command"], "POOL is missing"),
        (["plan", "no-such-handler", "POOL", "IN"], "no-such-handler"),
        (["plan", "command", "POOL", "IN", "--gpus", "4090,,3090"], "empty entry"),
        (["plan", "command", "POOL", "IN", "--attempts", "0"], "--attempts"),
        (["plan", "command", "POOL", "IN", "--lease", "-1"], "not a duration"),
        (["plan", "command", "POOL", "@no-such-list"], "cannot be read"),
        (["plan", "command", "OTHER", "IN"], "is not empty and is not a pool"),
    ],
)
def test_what_makes_no_sense_is_status_2_and_makes_no_pool(
    tmp_path: Path, inputs: list[Path], words: list[str], complaint: str
) -> None:
    places = {"POOL": tmp_path / "pool", "IN": inputs[0], "OTHER": tmp_path / "in"}
    run = fsqueue(*(places.get(word, word) for word in words), *CAT)
    assert run.returncode == 2, run.stderr
    assert complaint in run.stderr
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "pool").exists()
    assert len(os.listdir(tmp_path / "in")) == 8


def test_a_pool_without_work_is_done(tmp_path: Path) -> None:
    """Its only input cannot be read: nothing waits, and nobody waits for it."""
    run = fsqueue("plan", "command", tmp_path / "pool", tmp_path / "none", "--gpus", "cpu", *CAT)
    assert run.returncode == 1
    assert fsqueue("work", tmp_path / "pool").returncode == 0
    assert fsqueue("check", tmp_path / "pool").returncode == 0


# ---- weights, and who may ----


def test_a_weight_given_is_the_spool_s_and_stands(tmp_path: Path, inputs: list[Path]) -> None:
    pool = tmp_path / "pool"
    document = plan(pool, *inputs, "--weight", "cpu=0.5", "--weight", "cpu1=1.5")
    assert [spool["weight"] for spool in document["spools"]] == [0.5, 1.5]  # type: ignore[attr-defined]
    again = fsqueue("plan", "command", pool, *inputs, "--weight", "cpu1=2", *CAT)
    assert again.returncode == 2
    assert "cpu1 has had weight 1.5 in this pool" in again.stderr


def test_min_tier_and_requires_stand_in_the_kinds(tmp_path: Path, inputs: list[Path]) -> None:
    pool = tmp_path / "pool"
    plan(pool, *inputs, "--min-tier", "gpu", "--requires", "fp8")
    waiting = [path.name for path in (pool / "spools").glob("cpu*/*")]
    assert len(waiting) == 8 and all(".command--t1-fp8." in name for name in waiting)
    run = fsqueue("work", pool, "--spool", "cpu0", "--capability", "fp8")
    assert run.returncode == 5, "a CPU worker may not do what is for GPUs"
    run = fsqueue("work", pool, "--spool", "cpu0", "--capability", "fp8", "--role", "gpu")
    assert run.returncode == 0, run.stderr


def test_claim_seconds_decide_how_finely_inputs_are_cut(tmp_path: Path) -> None:
    from fsqueue.scheduling.planner import preview
    from tests.support.pools import Divisible, request

    def claims(claim_s: float, rate: float | None) -> int:
        handler = Divisible()
        handler.cost_per_second = rate
        return preview(None, request("a.1000", handler=handler, claim_s=claim_s)).total.claims

    assert claims(90, None) == claims(90, 1.0e6) == 8, "at least 8 for a spool"
    assert claims(90, 1.0) == 12
    assert claims(10, 1.0) == 100


# ---- priority ----


def test_a_plan_of_higher_priority_is_worked_first_and_seen_everywhere(tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    for name in ("low1", "low2", "low3", "low4", "low5", "urgent"):
        (tmp_path / name).write_text("x" * 9 if name != "urgent" else "x")
    program = ("--gpus", "cpu", "--", "cp", "{input}", "{output}")
    lows = [tmp_path / f"low{n}" for n in range(1, 6)]
    assert fsqueue("plan", "command", pool, *lows, *program).returncode == 0
    urgent = fsqueue("plan", "command", pool, tmp_path / "urgent", "--priority", "7", *program)
    assert urgent.returncode == 0, urgent.stderr
    (name,) = (p.name for p in (pool / "spools/cpu0").iterdir() if p.name.startswith("urgent"))
    assert name.endswith(".c1.a0.r0.p7")
    status = fsqueue("status", pool)
    assert re.search(r"^priority 7: 1 claim waits, such as urgent-", status.stdout, re.M)
    assert re.search(r"^priority 0: 5 claims wait, such as low\d-\w+, planned", status.stdout, re.M)
    facts = json.loads(fsqueue("status", pool, "--json").stdout)
    assert facts["waiting_by_priority"] == {"7": 1, "0": 5}
    explained = fsqueue("explain", pool, name.partition(".")[0])
    assert ", priority 7" in explained.stdout and "0 claims of its spool" in explained.stdout
    assert fsqueue("work", pool).returncode == 0
    order = [line.split("\t")[8] for line in fsqueue("joblog", pool).stdout.splitlines()[1:]]
    assert order[0].startswith("urgent-")
    assert fsqueue("check", pool, "--deep").returncode == 0
    assert "\npriority" not in fsqueue("status", pool).stdout


def test_a_priority_out_of_range_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    done = fsqueue(
        "plan",
        "command",
        tmp_path / "p",
        tmp_path / "a",
        "--priority",
        "10",
        "--",
        "cat",
        "{input}",
    )
    assert done.returncode == 2 and not (tmp_path / "p").exists()


# ---- more memory for another attempt (R77) ----

HUNGRY = 'if [ -e "$2" ]; then cat "$1"; else echo "CUDA out of memory" >&2; exit 1; fi'


def test_r77_a_claim_that_lacked_memory_is_tried_again_where_there_is_more(tmp_path: Path) -> None:
    pool, more = tmp_path / "pool", tmp_path / "more"
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    words = ("--retry-requires", "Big", "--gpus", "cpu", "--", "sh", "-c", HUNGRY, "sh", "{input}")
    planned = fsqueue("plan", "command", pool, tmp_path / "a", tmp_path / "b", *words, more)
    assert planned.returncode == 0, planned.stderr
    small = fsqueue("work", pool)
    assert small.returncode == 5, small.stderr
    names = sorted(path.name for path in (pool / "spools/cpu0").iterdir())
    assert [name.partition(".")[2] for name in names] == ["command--big.c1.a1.r1"] * 2
    assert "lacks the capability big" in fsqueue(
        "explain", pool, names[0].split(".")[0]
    ).stdout or ("no worker is alive" in fsqueue("explain", pool, names[0].split(".")[0]).stdout)
    more.touch()
    assert fsqueue("work", pool, "--capability", "big").returncode == 0
    assert fsqueue("check", pool, "--deep").returncode == 0
    done = [path.name for path in (pool / "done").iterdir()]
    assert len(done) == 2 and all(".command--big.c1.a1.r1@" in name for name in done)


def test_r77_a_word_that_cannot_be_a_condition_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    for word in ("more memory", "t1", "x" * 21):
        words = ("--retry-requires", word, *CAT)
        done = fsqueue("plan", "command", tmp_path / "p", tmp_path / "a", *words)
        assert done.returncode == 2 and "capability" in done.stderr or "too long" in done.stderr
        assert not (tmp_path / "p").exists()
