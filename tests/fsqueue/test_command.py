"""The handler `command`, with real programs."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from fsqueue import BadInput, ClaimFailed, ClaimImpossible, Interrupted, UsageError, Work
from fsqueue.command import Command
from fsqueue.pool.layout import State
from fsqueue.processes.program import STDERR_KEPT
from tests.support.planning import FOREVER, counts, ids, make_inputs, plan_command
from tests.support.processes import Start, alive, fsqueue, wait_for, wait_until_gone

# Write a private line with each of the two processes' ids to $2, then never end.
FAMILY = 'sleep 1000 & echo "$$ $!" > "$2.tmp"; mv "$2.tmp" "$2"; wait'

AWKWARD_NAMES = [
    b"two words",
    b"'single' \"double\"",
    b"new\nline",
    b"-rf",
    b"; touch pwned; #",
    b"$(touch pwned) `touch pwned`",
    b"{output} {id}",
    b"*?[a-z]",
    b"not utf-8 \xff\xfe",
    "Müller 蛋白".encode(),
]


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Path]:
    """Run `argv` over an input as a claim would be run; return the output's path."""

    def run(
        argv: Sequence[str],
        path: Path | None = None,
        *,
        stopping: Callable[[], bool] = lambda: False,
        grace: float = 10.0,
        timeout: float = 0.0,
        attempt: int = 0,
    ) -> Path:
        if path is None:
            path = tmp_path / "input"
            path.write_text("some text\n")
        handler = Command()
        work = Work(
            id="an-id",
            kind="command",
            cost=1,
            attempt=attempt,
            payload={"input": str(path), "facts": handler.identify(str(path))},
            options=handler.prepare({"argv": list(argv), "grace": grace, "timeout": timeout}),
            output=tmp_path / "output",
            partial=str(tmp_path / "partial"),
            is_stopping=stopping,
            report=lambda done, total, measures: None,
            warn=lambda text: None,
        )
        handler.run(work)
        return work.output

    return run


def shell(script: str, *words: str) -> list[str]:
    """Return the argv of a small script, with the input as $1 before further words."""
    return ["sh", "-c", script, "sh", "{input}", *words]


# ---- what the program is given ----


def test_each_place_in_its_arguments_is_filled_in(run: Callable[..., Path], tmp_path: Path) -> None:
    script = 'shift; out=$1; shift; printf "%s\\n" "$@" > "$out"'
    words = ["{output}", "{input}", "{id}", "{attempt}", "a{id}b{attempt}c", "{other}", "{{id}}"]
    lines = run(shell(script, *words), attempt=2).read_text().splitlines()
    assert lines == [str(tmp_path / "input"), "an-id", "2", "aan-idb2c", "{other}", "{an-id}"]


@pytest.mark.parametrize("name", AWKWARD_NAMES, ids=repr)
def test_an_awkward_path_reaches_the_program_as_one_word(
    run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: bytes
) -> None:
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path / "data")
    path = Path(os.fsdecode(os.fsencode(tmp_path / "data") + b"/" + name))
    path.write_bytes(b"content of " + name)
    assert run(["cat", "{input}"], path).read_bytes() == b"content of " + name
    assert [entry.name for entry in Path().iterdir()] == [path.name]


def test_the_program_learns_the_same_from_its_environment(
    run: Callable[..., Path], tmp_path: Path
) -> None:
    names = "FSQUEUE_ID FSQUEUE_ATTEMPT FSQUEUE_INPUT FSQUEUE_OUTPUT FSQUEUE_PARTIAL"
    script = f'for n in {names}; do printenv "$n"; done'
    lines = run(shell(script), attempt=1).read_text().splitlines()
    assert lines == ["an-id", "1", *(str(tmp_path / n) for n in ("input", "output", "partial"))]


def test_its_stdin_is_empty(run: Callable[..., Path]) -> None:
    assert run(shell("cat -; echo end")).read_text() == "end\n"


# ---- what becomes of its output ----


def test_stdout_is_the_output_without_an_output_argument(run: Callable[..., Path]) -> None:
    assert run(["wc", "-c", "{input}"]).read_text().split()[0] == "10"


def test_stdout_is_not_the_output_with_an_output_argument(
    run: Callable[..., Path],
) -> None:
    assert run(shell("echo chatter; cp $1 $2", "{output}")).read_text() == "some text\n"


def test_a_program_that_exits_0_without_an_output_has_failed(run: Callable[..., Path]) -> None:
    with pytest.raises(ClaimFailed, match="exited 0 but did not write {output}"):
        run(["true", "{input}", "{output}"])


def test_a_failure_records_the_exit_status_and_the_end_of_stderr(run: Callable[..., Path]) -> None:
    script = f"head -c {2 * STDERR_KEPT} /dev/zero | tr '\\0' x >&2; echo the reason >&2; exit 7"
    with pytest.raises(ClaimFailed, match="exited with status 7; its output is not pub") as caught:
        run(shell(script))
    assert caught.value.detail.endswith("xxxthe reason\n")
    assert len(caught.value.detail) == STDERR_KEPT


def test_a_program_killed_by_a_signal_fails_the_claim_and_the_signal_is_named(
    run: Callable[..., Path],
) -> None:
    with pytest.raises(ClaimFailed, match="was killed by SIGSEGV"):
        run(shell("echo half; kill -SEGV $$"))


def test_a_missing_program_fails_the_claim(run: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ClaimFailed, match="no-such-program cannot be started: No such file"):
        run([str(tmp_path / "no-such-program"), "{input}"])


# ---- how it is stopped ----


@pytest.mark.slow
def test_a_timeout_fails_the_claim_and_kills_all_descendants(
    run: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(ClaimFailed, match="longer than --timeout 0.3 seconds"):
        run(shell(FAMILY, str(tmp_path / "family")), timeout=0.3)
    wait_until_gone(read_family(tmp_path / "family"))


@pytest.mark.slow
def test_a_stop_ends_the_program_and_what_it_started(
    run: Callable[..., Path], tmp_path: Path
) -> None:
    family = tmp_path / "family"
    with pytest.raises(Interrupted):
        run(shell(FAMILY, str(family)), stopping=family.exists)
    wait_until_gone(read_family(family))


@pytest.mark.slow
def test_a_program_deaf_to_sigterm_is_killed_after_the_grace(
    run: Callable[..., Path], tmp_path: Path
) -> None:
    family = tmp_path / "family"
    with pytest.raises(Interrupted):
        run(shell("trap '' TERM; " + FAMILY, str(family)), stopping=family.exists, grace=0.3)
    wait_until_gone(read_family(family))


@pytest.mark.slow
def test_a_program_may_use_its_grace_to_tidy_up(run: Callable[..., Path], tmp_path: Path) -> None:
    script = 'trap \'echo tidied > "$2"; exit\' TERM; : > "$3"; while :; do sleep 0.01; done'
    begun, tidied = tmp_path / "begun", tmp_path / "tidied"
    with pytest.raises(Interrupted):
        run(shell(script, str(tidied), str(begun)), stopping=begun.exists)
    assert tidied.read_text() == "tidied\n"


def read_family(path: Path) -> list[int]:
    """Return the process ids of the program and of its child."""
    family = [int(word) for word in path.read_text().split()]
    assert len(family) == 2
    return family


# ---- in a worker ----


@pytest.mark.slow
def test_program_and_grandchild_are_gone_when_a_worker_told_to_stop_has_left(
    start: Start, tmp_path: Path
) -> None:
    family = tmp_path / "family"
    pool = plan_command(
        tmp_path / "pool", make_inputs(tmp_path / "in", 1), shell(FAMILY, str(family))
    )
    worker = start("work", pool.root)
    wait_for(family.exists, "the program to start")
    assert all(map(alive, read_family(family)))
    worker.send(signal.SIGTERM)
    assert worker.reap() == 143
    wait_until_gone(read_family(family))
    assert counts(pool) == {"waiting": 1}


@pytest.mark.slow
def test_a_program_dies_with_a_worker_that_was_killed(start: Start, tmp_path: Path) -> None:
    family = tmp_path / "family"
    script = 'echo "$$ $$" > "$2.tmp"; mv "$2.tmp" "$2"; exec sleep 1000'
    pool = plan_command(
        tmp_path / "pool", make_inputs(tmp_path / "in", 1), shell(script, str(family))
    )
    worker = start("work", pool.root)
    wait_for(family.exists, "the program to start")
    program = read_family(family)[0]
    worker.kill()
    wait_until_gone([program])


@pytest.mark.slow
def test_stderr_of_every_attempt_is_kept_and_the_output_of_none(tmp_path: Path) -> None:
    script = 'echo half > "$2"; echo "attempt $3 went wrong" >&2; exit 1'
    inputs = make_inputs(tmp_path / "in", 1)
    pool = plan_command(tmp_path / "pool", inputs, shell(script, "{output}", "{attempt}"))
    run = fsqueue("work", pool.root, "--steal-interval", "0.1")
    assert run.returncode == 3, run.stderr
    (id,) = ids(pool, State.FAILED)
    records = [json.loads(Path(pool.error(id, n)).read_text()) for n in range(3)]
    assert [record["detail"] for record in records] == [
        f"attempt {n} went wrong\n" for n in range(3)
    ]
    assert list(Path(pool.directory("outputs")).iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("place", ["{output}", "printed"])
def test_output_of_a_failed_attempt_is_not_published_by_the_next(
    tmp_path: Path, place: str
) -> None:
    """Attempt 0 writes and fails; attempt 1 writes nothing; attempt 2 succeeds."""
    write = 'echo "from attempt $2"' + (' > "$3"' if place == "{output}" else "")
    script = f"case $2 in 0) {write}; exit 1;; 1) exit 1;; *) {write};; esac"
    if place == "{output}":
        script = script.replace("1) exit 1", "1) exit 0")  # without an output, which fails too
    pool = plan_command(
        tmp_path / "pool", make_inputs(tmp_path / "in", 1), shell(script, "{attempt}", place)
    )
    run = fsqueue("work", pool.root, "--steal-interval", "0.1")
    assert run.returncode == 0, run.stderr
    (id,) = ids(pool, State.DONE)
    assert Path(pool.output(id, ".out")).read_text() == "from attempt 2\n"


@pytest.mark.slow
@pytest.mark.parametrize("make", ["mkdir -p", "mkfifo"])
def test_an_output_other_than_a_file_fails_only_its_claim(tmp_path: Path, make: str) -> None:
    inputs = make_inputs(tmp_path / "in", 2)
    script = f'case $1 in *000) {make} "$2";; *) echo fine > "$2";; esac'
    pool = plan_command(tmp_path / "pool", inputs, shell(script, "{output}"), attempts=2)
    run = fsqueue("work", pool.root, "--steal-interval", "0.1")
    assert run.returncode == 3, run.stderr
    assert "Traceback" not in run.stderr
    assert counts(pool) == {"done": 1, "failed": 1}
    assert [name for name in os.listdir(pool.directory("workers")) if "left" not in name] == []


@pytest.mark.slow
def test_it_can_run_a_program_over_an_awkwardly_named_input_end_to_end(tmp_path: Path) -> None:
    paths = [
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
        for name in AWKWARD_NAMES
        if not name.startswith(b"-")
    ]
    for number, path in enumerate(paths):
        path.write_text(f"{number}\n")
    pool = tmp_path / "a pool; with 'quotes'"
    planned = fsqueue("plan", "command", pool, *paths, "--gpus", "cpu", "--", "cat", "{input}")
    assert planned.returncode == 0, planned.stderr
    worked = fsqueue("work", pool)
    assert worked.returncode == 0, worked.stderr
    outputs = sorted(int(path.read_text()) for path in (pool / "outputs").iterdir())
    assert outputs == list(range(len(paths)))
    assert fsqueue("check", pool).returncode == 0


# ---- planning ----


@pytest.mark.parametrize(
    "argv, complaint",
    [
        ([], "no program was given"),
        (["cat"], "has no {input} among its arguments"),
        (["no-such-program-anywhere", "{input}"], "not on PATH"),
    ],
)
def test_a_command_that_cannot_work_is_refused_when_it_is_planned(
    argv: list[str], complaint: str
) -> None:
    with pytest.raises(UsageError, match=complaint):
        Command().prepare({"argv": argv, "grace": 10.0, "timeout": 0.0})


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("option", ["grace", "timeout"])
def test_a_duration_that_is_none_is_refused(option: str, seconds: float) -> None:
    options = {"argv": ["cat", "{input}"], "grace": 10.0, "timeout": 0.0} | {option: seconds}
    with pytest.raises(UsageError, match=f"--{option}"):
        Command().prepare(options)


def test_a_program_given_by_a_relative_path_is_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = {"argv": ["./count", "{input}"], "grace": 10.0, "timeout": 0.0}
    assert Command().prepare(options)["argv"] == [str(tmp_path / "count"), "{input}"]


def test_an_input_that_changed_since_it_was_planned_is_refused_for_good(
    run: Callable[..., Path], tmp_path: Path
) -> None:
    path = tmp_path / "changing"
    path.write_text("before")
    handler = Command()
    planned = handler.identify(str(path))
    path.write_text("after, and longer")
    work = Work(
        id="an-id",
        kind="command",
        cost=1,
        attempt=0,
        payload={"input": str(path), "facts": planned},
        options={"argv": list(FOREVER), "grace": 1.0, "timeout": 0.0},
        output=tmp_path / "output",
        partial="",
        is_stopping=lambda: False,
        report=lambda done, total, measures: None,
        warn=lambda text: None,
    )
    with pytest.raises(ClaimImpossible, match="changed since it was planned"):
        handler.run(work)


def test_an_input_that_is_not_there_cannot_be_planned(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="missing: No such file"):
        Command().survey(str(tmp_path / "missing"), {})
