"""The handler `command`, with real programs."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest

from fsqueue import (
    BadInput,
    ClaimFailed,
    ClaimImpossible,
    Interrupted,
    NotSupportedError,
    UsageError,
    Work,
    command,
)
from fsqueue.command import Command
from fsqueue.monitor.alerts import AlertKind
from fsqueue.monitor.snapshot import Reader
from fsqueue.pool.layout import State
from fsqueue.pool.reader import PoolReader
from fsqueue.processes import program, table
from fsqueue.processes.leftovers import end_everything_of
from fsqueue.processes.program import STDERR_KEPT
from tests.support.planning import (
    FOREVER,
    counts,
    ids,
    make_inputs,
    names_in,
    plan,
    plan_command,
)
from tests.support.processes import Start, alive, fsqueue, leases_in, wait_for, wait_until_gone

# Write a private line with each of the two processes' ids to $2, then never end.
FAMILY = 'sleep 1000 & echo "$$ $!" > "$2.tmp"; mv "$2.tmp" "$2"; wait'

WORKER = f"a-worker-{os.getpid()}"
"""Unlike that of another run of these tests: closing the handler ends all that carries it."""

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


Run = Callable[..., Path]


class Report:
    """What a claim reports while it runs: its warnings, and how often it was active."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.active = 0


@pytest.fixture
def report() -> Report:
    return Report()


@pytest.fixture
def run(tmp_path: Path, report: Report) -> Iterator[Run]:
    """Run `argv` over an input as a claim would be run; return the output's path."""
    handler = Command()

    def note_progress(done: int, total: int, measures: object) -> None:
        report.active += 1

    def run(
        argv: Sequence[str],
        path: Path | None = None,
        *,
        stopping: Callable[[], bool] = lambda: False,
        grace: float = 10.0,
        timeout: float = 0.0,
        attempt: int = 0,
        **options: Any,
    ) -> Path:
        if path is None:
            path = tmp_path / "input"
            path.write_text("some text\n")
        given = {"argv": list(argv), "grace": grace, "timeout": timeout} | options
        scratch = tmp_path / f".{WORKER}"
        scratch.mkdir(exist_ok=True)
        work = Work(
            id="an-id",
            kind="command",
            cost=1,
            attempt=attempt,
            payload={"input": str(path), "facts": handler.identify(str(path))},
            options=handler.prepare(given),
            output=scratch / f"an-id.r0{handler.suffix}",
            partial=str(tmp_path / "partial"),
            is_stopping=stopping,
            report=note_progress,
            warn=report.warnings.append,
            worker=WORKER,
        )
        work.output.unlink(missing_ok=True)  # a worker has published it, and removed this name
        handler.run(work)
        return work.output

    run.scratch = tmp_path / f".{WORKER}"  # type: ignore[attr-defined]
    yield run
    handler.close()


def shell(script: str, *words: str) -> list[str]:
    """Return the argv of a small script, with the input as $1 before further words."""
    return ["sh", "-c", script, "sh", "{input}", *words]


# ---- what the program is given ----


def test_each_place_in_its_arguments_is_filled_in(run: Run, tmp_path: Path) -> None:
    script = 'shift; out=$1; shift; printf "%s\\n" "$@" > "$out"'
    words = ["{output}", "{input}", "{id}", "{attempt}", "a{id}b{attempt}c", "{other}", "{{id}}"]
    lines = run(shell(script, *words), attempt=2).read_text().splitlines()
    assert lines == [str(tmp_path / "input"), "an-id", "2", "aan-idb2c", "{other}", "{an-id}"]


@pytest.mark.parametrize("name", AWKWARD_NAMES, ids=repr)
def test_an_awkward_path_reaches_the_program_as_one_word(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: bytes
) -> None:
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path / "data")
    path = Path(os.fsdecode(os.fsencode(tmp_path / "data") + b"/" + name))
    path.write_bytes(b"content of " + name)
    assert run(["cat", "{input}"], path).read_bytes() == b"content of " + name
    assert [entry.name for entry in Path().iterdir()] == [path.name]


def test_the_program_learns_the_same_from_its_environment(run: Run, tmp_path: Path) -> None:
    names = "FSQUEUE_ID FSQUEUE_ATTEMPT FSQUEUE_INPUT FSQUEUE_OUTPUT FSQUEUE_PARTIAL"
    script = f'for n in {names}; do printenv "$n"; done'
    lines = run(shell(script), attempt=1).read_text().splitlines()
    paths = [tmp_path / n for n in ("input", f".{WORKER}/an-id.r0.out", "partial")]
    assert lines == ["an-id", "1", *map(str, paths)]


def test_its_stdin_is_empty(run: Run) -> None:
    assert run(shell("cat -; echo end")).read_text() == "end\n"


# ---- what becomes of its output ----


def test_stdout_is_the_output_without_an_output_argument(run: Run) -> None:
    assert run(["wc", "-c", "{input}"]).read_text().split()[0] == "10"


def test_stdout_is_not_the_output_with_an_output_argument(
    run: Run,
) -> None:
    assert run(shell("echo chatter; cp $1 $2", "{output}")).read_text() == "some text\n"


def test_a_program_that_exits_0_without_an_output_has_failed(run: Run) -> None:
    with pytest.raises(ClaimFailed, match="exited 0 but did not write {output}"):
        run(["true", "{input}", "{output}"])


def test_a_failure_records_the_exit_status_and_the_end_of_stderr(run: Run) -> None:
    script = f"head -c {2 * STDERR_KEPT} /dev/zero | tr '\\0' x >&2; echo the reason >&2; exit 7"
    with pytest.raises(ClaimFailed, match="exited with status 7; its output is not pub") as caught:
        run(shell(script))
    assert caught.value.detail.endswith("xxxthe reason\n")
    assert len(caught.value.detail) == STDERR_KEPT


def test_a_program_killed_by_a_signal_fails_the_claim_and_the_signal_is_named(
    run: Run,
) -> None:
    with pytest.raises(ClaimFailed, match="was killed by SIGSEGV"):
        run(shell("echo half; kill -SEGV $$"))


def test_a_missing_program_fails_the_claim(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ClaimFailed, match="no-such-program cannot be started: No such file"):
        run([str(tmp_path / "no-such-program"), "{input}"])


# ---- what it leaves behind ----


@pytest.mark.slow
def test_r28_nothing_is_written_into_an_output_once_it_is_published(
    run: Run, report: Report
) -> None:
    script = "(i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done) & sleep 0.1"
    output = run(shell(script), grace=0.3)
    assert not writers(output)
    lines = output.read_text().split()
    assert lines == [str(n + 1) for n in range(len(lines))]
    (warning,) = report.warnings
    assert "that sh left running" in warning


@pytest.mark.slow
def test_r22_a_process_substitution_may_finish_what_it_writes(run: Run, report: Report) -> None:
    """bash does not wait for what `tee` writes to."""
    script = 'seq 20000 | tee >(sleep 0.2; gzip > "$2") | tail -n 1 > /dev/null'
    output = run(["bash", "-c", script, "bash", "{input}", "{output}"], suffix=".gz")
    assert gzip.decompress(output.read_bytes()).split()[-1] == b"20000"
    assert report.warnings == []


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["exit 0", "exit 1", "kill -SEGV $$"])
def test_r22_what_it_left_running_has_ended_whatever_its_ending(
    run: Run, tmp_path: Path, report: Report, ending: str
) -> None:
    script = f'setsid sleep 1000 & echo "$! $!" > "$2"; {ending}'
    with nullcontext() if ending == "exit 0" else pytest.raises(ClaimFailed):
        run(shell(script, str(tmp_path / "family")), grace=0.1)
    assert not any(map(alive, read_family(tmp_path / "family")))
    assert report.warnings == ["1 process that sh left running was ended"]


@pytest.mark.slow
def test_r22_a_program_that_the_handler_itself_fails_beside_is_ended(
    run: Run, tmp_path: Path
) -> None:
    family = tmp_path / "family"

    def fail() -> bool:
        if family.exists():
            raise MemoryError
        return False

    with pytest.raises(MemoryError):
        run(shell(FAMILY, str(family)), stopping=fail)
    assert not any(map(alive, read_family(family)))


@pytest.mark.slow
def test_r22_a_program_that_was_begun_and_never_looked_at_ends_with_its_handler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the second signal comes at the moment when the program has just begun."""
    monkeypatch.setattr(command, "_wait", lambda work, program: 0)
    handler = Command()
    given = {"argv": shell("echo $$ > $2; exec sleep 1000", "{output}"), "grace": 1.0, "timeout": 0}
    (tmp_path / "input").write_text("x")
    path = str(tmp_path / "input")
    work = Work(
        id="an-id",
        kind="command",
        cost=1,
        attempt=0,
        payload={"input": path, "facts": handler.identify(path)},
        options=handler.prepare(given),
        output=tmp_path / "output",
        partial="",
        is_stopping=lambda: False,
        report=lambda done, total, measures: None,
        warn=lambda text: None,
        worker=f"{WORKER}-left",
    )
    with suppress(ClaimFailed):
        handler.run(work)
    wait_for(lambda: work.output.exists() and work.output.read_text(), "the program to begin")
    program = int(work.output.read_text())
    handler.close()
    wait_until_gone([program])


@pytest.mark.slow
def test_r28_an_output_that_a_process_may_still_write_to_is_published_as_a_copy(
    run: Run, tmp_path: Path, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = 'echo whole; (while [ ! -e "$2" ]; do sleep 0.01; done; echo late) & echo $! > "$3"'
    go, child = tmp_path / "go", tmp_path / "child"
    with monkeypatch.context() as patch:
        patch.setattr(program, "KILL_S", 0.1)
        patch.setattr(os, "killpg", lambda group, number: None)
        output = run(shell(script, str(go), str(child)), grace=0.0)
    assert writers(output) == []
    assert "cannot be ended" in report.warnings[-1]
    go.touch()
    wait_until_gone([int(child.read_text())])
    assert output.read_text() == "whole\n"


@pytest.mark.slow
def test_r28_where_processes_cannot_be_seen_the_output_is_a_copy(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "shows_this_process", lambda: False)
    script = 'echo whole; setsid sh -c \'echo $$ > "$1"; exec sleep 1000\' sh "$2" & sleep 0.2'
    output = run(shell(script, str(tmp_path / "child")), grace=0.1)
    stray = int((tmp_path / "child").read_text())
    try:
        assert alive(stray), "it left the group, and nothing can find it"
        assert writers(output) == []
        assert output.read_text() == "whole\n"
    finally:
        os.kill(stray, signal.SIGKILL)


@pytest.mark.parametrize("ending", ["exit 0", "exit 1"])
def test_r22_files_beside_the_output_are_removed_with_the_run(run: Run, ending: str) -> None:
    script = (
        f'echo x | tee "$2.log" "$2"; mkdir -p "$2.d/deep"; echo x > "$2.d/deep/file"; {ending}'
    )
    try:
        output = run(shell(script, "{output}"))
        left = [output.name]
    except ClaimFailed:
        left = []
    assert os.listdir(run.scratch) == left  # type: ignore[attr-defined]


def test_r25_a_program_has_a_temporary_directory_that_goes_with_the_run(
    run: Run, tmp_path: Path
) -> None:
    script = 'echo "$TMPDIR" "$TMP" "$TEMP"; ls -A "$TMPDIR"; mktemp >&2; mkdir "$TMPDIR/sub"'
    places = set(run(shell(script)).read_text().split())
    assert len(places) == 1
    assert WORKER in (place := Path(places.pop())).name
    assert not place.exists()
    with pytest.raises(ClaimFailed):
        run(shell(f"{script}; echo $TMPDIR >&2; exit 1"))


def test_r25_without_any_place_for_temporary_files_the_worker_is_to_blame(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/no/such/place")
    with pytest.raises(NotSupportedError, match="Set TMPDIR"):
        run(["cat", "{input}"])


def writers(path: Path) -> list[str]:
    """Return the processes that have a file open."""
    found = []
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.path.samefile(link, path):
                found.append(str(link))
        except OSError:
            continue
    return found


# ---- how it is stopped ----


@pytest.mark.slow
def test_a_timeout_fails_the_claim_and_kills_all_descendants(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ClaimFailed, match="longer than --timeout 0.3 seconds"):
        run(shell(FAMILY, str(tmp_path / "family")), timeout=0.3)
    wait_until_gone(read_family(tmp_path / "family"))


@pytest.mark.slow
@pytest.mark.parametrize("beside", ["", "yes >&2 &"])
def test_r23_stderr_before_a_timeout_is_kept(run: Run, beside: str) -> None:
    with pytest.raises(ClaimFailed, match="longer than --timeout") as caught:
        run(shell(f"{beside} echo the reason >&2; exec sleep 1000"), timeout=0.3, grace=1.0)
    assert ("y\ny\n" if beside else "the reason\n") in caught.value.detail
    assert len(caught.value.detail) <= STDERR_KEPT


@pytest.mark.slow
def test_r29_only_what_uses_cpu_time_or_writes_is_active(
    run: Run, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "ACTIVITY_S", 0.3)
    for script, active in {
        "exec sleep 1000": False,
        "sh -c 'while :; do :; done'": True,
        "while :; do echo on; sleep 0.1; done": True,
        "while :; do echo on >&2; sleep 0.1; done": True,
    }.items():
        report.active = 0
        with pytest.raises(ClaimFailed, match="longer than"):
            run(shell(script), timeout=1.5, grace=0.5)
        assert (report.active > 1) is active, script


@pytest.mark.slow
def test_a_stop_ends_the_program_and_what_it_started(run: Run, tmp_path: Path) -> None:
    family = tmp_path / "family"
    with pytest.raises(Interrupted):
        run(shell(FAMILY, str(family)), stopping=family.exists)
    wait_until_gone(read_family(family))


@pytest.mark.slow
def test_a_program_deaf_to_sigterm_is_killed_after_the_grace(run: Run, tmp_path: Path) -> None:
    family = tmp_path / "family"
    with pytest.raises(Interrupted):
        run(shell("trap '' TERM; " + FAMILY, str(family)), stopping=family.exists, grace=0.3)
    wait_until_gone(read_family(family))


@pytest.mark.slow
def test_a_program_may_use_its_grace_to_tidy_up(run: Run, tmp_path: Path) -> None:
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
def test_r24_a_program_and_all_it_started_die_with_a_worker_that_was_killed(
    start: Start, tmp_path: Path
) -> None:
    family = tmp_path / "family"
    script = 'setsid sleep 1000 & echo "$$ $!" > "$2.tmp"; mv "$2.tmp" "$2"; exec sleep 1000'
    pool = plan_command(
        tmp_path / "pool", make_inputs(tmp_path / "in", 1), shell(script, str(family))
    )
    worker = start("work", pool.root)
    wait_for(family.exists, "the program to start")
    id = worker.worker_in(pool)
    worker.kill()
    try:
        wait_until_gone(read_family(family))
    finally:
        end_everything_of(id)


@pytest.mark.slow
def test_r29_a_program_that_hangs_is_reported_as_stalled(start: Start, tmp_path: Path) -> None:
    pool = plan_command(tmp_path / "pool", make_inputs(tmp_path / "in", 1), FOREVER)
    start("work", pool.root)
    reader = Reader(pool, stall_s=5.0)  # longer than until a worker writes its next status

    def stalled() -> list[str]:
        return [a.text for a in reader.snapshot().warnings if a.kind is AlertKind.STALLED]

    assert "no activity" in wait_for(stalled, "the alert")[0]


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
    assert [name for name in leases_in(pool) if "left" not in name] == []


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


# ---- in a worker: what one claim leaves is nothing to the next ----


@pytest.mark.slow
def test_r22_debris_that_is_still_being_made_ends_with_its_claim_and_no_worker(
    tmp_path: Path,
) -> None:
    inputs = make_inputs(tmp_path / "in", 4)
    bad = 'mkdir "$2.d"; (while :; do : > "$2.d/$(date +%N)"; done) & sleep 0.2; exit 1'
    script = f'case $1 in *000) {bad};; *) ls -A "$(dirname "$2")" > "$2";; esac'
    pool = plan_command(tmp_path / "pool", inputs, shell(script, "{output}"), grace=0.1)
    run = fsqueue("work", pool.root, "--steal-interval", "0.1")
    assert run.returncode == 3, run.stderr
    assert counts(pool) == {"done": 3, "failed": 1}
    for id in ids(pool, State.DONE):
        assert len(Path(pool.output(id, ".out")).read_text().split()) == 1, "its own output"
    assert "that sh left running" in run.stderr


@pytest.mark.slow
@pytest.mark.skipif(
    subprocess.run(["unshare", "-Urpf", "--mount-proc", "true"], capture_output=True).returncode,
    reason="no PID namespace can be made here",
)
def test_r21_a_worker_that_is_pid_1_leaves_no_zombies(tmp_path: Path) -> None:
    """As in a container. Each program counts what those before it left."""
    inputs = make_inputs(tmp_path / "in", 6)
    script = (
        "grep -l '^State:.Z' /proc/[0-9]*/status | wc -l; "
        "(setsid sleep 0.01 <&- >&- 2>&- &); (env -i setsid sleep 1000 <&- >&- 2>&- &)"
    )
    pool = plan_command(tmp_path / "pool", inputs, shell(script), grace=0.2)
    inner = [sys.executable, "-m", "fsqueue", "work", pool.root]
    done = subprocess.run(
        ["unshare", "-Urpf", "--mount-proc", *inner], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    outputs = [Path(pool.output(id, ".out")).read_text() for id in ids(pool, State.DONE)]
    assert outputs == ["0\n"] * 6


@pytest.mark.slow
def test_r27_two_workers_in_two_directories_run_the_planned_program(
    tmp_path: Path,
) -> None:
    inputs = make_inputs(tmp_path / "in", 2)
    for name in ("planned", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tool.sh").write_text(f"echo {name}\n")
    words = ["plan", "command", tmp_path / "pool", *inputs, "--gpus", "cpu"]
    planned = fsqueue(*words, "--", "sh", "tool.sh", "{input}", cwd=tmp_path / "planned")
    assert planned.returncode == 0, planned.stderr
    for _ in range(2):
        worked = fsqueue("work", tmp_path / "pool", "--max-claims", "1", cwd=tmp_path / "other")
        assert worked.returncode in (0, 75), worked.stderr
    outputs = [path.read_text() for path in (tmp_path / "pool" / "outputs").iterdir()]
    assert outputs == ["planned\n"] * 2


@pytest.mark.slow
def test_r27_a_worker_without_the_planned_directory_leaves_the_claim_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = make_inputs(tmp_path / "in", 1)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    pool = plan_command(tmp_path / "pool", inputs, ["cat", "{input}"])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").rmdir()
    run = fsqueue("work", pool.root, "--steal-interval", "0.1")
    assert run.returncode == 5
    assert "where cat was planned and has to run, cannot be entered here" in run.stderr
    (name,) = names_in(pool, State.WAITING)
    assert name.attempt == 0
    (tmp_path / "here").mkdir()
    assert fsqueue("work", pool.root).returncode == 0


@pytest.mark.slow
def test_r27_claims_that_were_planned_without_a_directory_run_in_the_workers(
    tmp_path: Path,
) -> None:
    class Earlier(Command):
        def prepare(self, options: dict[str, Any]) -> dict[str, Any]:
            return {key: options[key] for key in ("argv", "grace", "timeout")}

    handler = Earlier()
    handler.name = "command"
    options = {"argv": shell("pwd"), "grace": 1.0, "timeout": 0.0}
    pool, _ = plan(tmp_path / "pool", handler, make_inputs(tmp_path / "in", 1), options)
    run = fsqueue("work", pool.root, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    (id,) = ids(pool, State.DONE)
    assert Path(pool.output(id, ".out")).read_text() == f"{tmp_path}\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    "options, word",
    [
        (["--suffix", ".fastq.gz"], "{output}"),
        ([], "{output}.fastq.gz"),
        (["--suffix", ".fastq.gz"], "{output}.fastq.gz"),
    ],
)
def test_r27_the_program_sees_the_suffix_that_is_published(
    tmp_path: Path, options: list[str], word: str
) -> None:
    inputs = make_inputs(tmp_path / "in", 2)
    words = ["plan", "command", tmp_path / "pool", *inputs, "--gpus", "cpu", *options]
    planned = fsqueue(*words, "--", *shell('echo "$2" > "$2"', word))
    assert planned.returncode == 0, planned.stderr
    assert fsqueue("work", tmp_path / "pool").returncode == 0
    for path in (tmp_path / "pool" / "outputs").iterdir():
        id = path.name.removesuffix(".fastq.gz")
        assert path.read_text().rstrip().endswith(f"/{id}.r0.fastq.gz")
    assert fsqueue("check", tmp_path / "pool").returncode == 0


@pytest.mark.slow
def test_r27_plans_with_different_suffixes_share_a_pool(tmp_path: Path) -> None:
    inputs = make_inputs(tmp_path / "in", 2)
    words = ["plan", "command", tmp_path / "pool", *inputs, "--gpus", "cpu"]
    for suffix in (".gz", ".fastq.gz", ".out"):
        done = fsqueue(*words, "--suffix", suffix, "--", "cp", "{input}", "{output}")
        assert done.returncode == 0, done.stderr
    assert fsqueue("work", tmp_path / "pool").returncode == 0
    names = [path.name.partition(".")[2] for path in (tmp_path / "pool" / "outputs").iterdir()]
    assert sorted(names) == ["fastq.gz"] * 2 + ["gz"] * 2 + ["out"] * 2
    checked = fsqueue("check", tmp_path / "pool")
    assert checked.returncode == 0, checked.stdout


@pytest.mark.slow
def test_r20_a_module_in_the_directory_of_run_is_not_executed(tmp_path: Path) -> None:
    """`python -m` would look there first for every module that it imports."""
    pool = plan_command(tmp_path / "pool", make_inputs(tmp_path / "in", 1), ["cat", "{input}"])
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "random.py").write_text("raise SystemExit('somebody else')\n")
    argv = [str(Path(sys.executable).with_name("fsqueue")), "run", pool.root, "--workers", "1"]
    done = subprocess.run(argv, cwd=tmp_path / "shared", capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


# ---- planning ----


@pytest.mark.parametrize(
    "words, ending, meant",
    [
        (["{output}"], ".out", ["{output}"]),
        ([], ".out", []),
        (["{output}.gz"], ".gz", ["{output}"]),
        (["--out={output}.tar.gz"], ".tar.gz", ["--out={output}"]),
        (["gzip -c x > {output}.gz; ls {output}.gz"], ".gz", ["gzip -c x > {output}; ls {output}"]),
        (["x > {output}.tmp && mv {output}.tmp {output}"], ".out", None),
        (['x > {output}.tmp; mv {output}.tmp "$FSQUEUE_OUTPUT"'], ".out", None),
        (["{output}_2", "{output}/x", "{output}."], ".out", None),
    ],
)
def test_r27_what_follows_output_in_an_argument_is_its_suffix(
    words: list[str], ending: str, meant: list[str] | None
) -> None:
    handler = Command()
    given = {"argv": ["cat", "{input}", *words], "grace": 1.0}
    options = handler.prepare(given)
    assert (options["suffix"], handler.suffix) == (ending, ending)
    assert options["argv"][2:] == (words if meant is None else meant)


@pytest.mark.parametrize(
    "suffix, words, complaint",
    [
        ("gz", ["{output}"], "how a file's name can end"),
        (".a.b.c.d", ["{output}"], "how a file's name can end"),
        ("./x", ["{output}"], "how a file's name can end"),
        (None, ["{output}.bam", "{output}.bai"], "{output}.bai and {output}.bam, but one file"),
        (None, ["{output}.a.b.c.d"], "one file is published"),
        (".fastq.gz", ["{output}.gz"], "contradict each other"),
    ],
)
def test_r27_an_output_that_could_not_be_published_is_refused_when_it_is_planned(
    suffix: str | None, words: list[str], complaint: str
) -> None:
    given = {"argv": ["cat", "{input}", *words], "grace": 1.0, "suffix": suffix}
    with pytest.raises(UsageError) as caught:
        Command().prepare(given)
    assert complaint in str(caught.value)


def test_r27_the_directory_is_part_of_the_identity_only_where_an_argument_names_something_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tool.py").touch()

    def identity(directory: str, *words: str) -> Any:
        monkeypatch.chdir(tmp_path / directory)
        handler = Command()
        argv = ["cat", "{input}", *words]
        return handler.result_options(handler.prepare({"argv": argv, "grace": 1.0}))

    for words in (["tool.py"], ["--with=./tool.py"], ["sh -c 'exec tool.py x'"], ["."]):
        assert identity("a", *words) != identity("b", *words), words
    for words in (["other.py"], ["-n1"], [str(tmp_path)], ["{output}"], ["1.5"]):
        assert identity("a", *words) == {"argv": ["cat", "{input}", *words]}, "as it always was"
        assert identity("a", *words) == identity("b", *words), words


def test_durations_may_be_given_with_units(tmp_path: Path) -> None:
    inputs = make_inputs(tmp_path / "in", 1)
    words = ["plan", "command", tmp_path / "pool", *inputs, "--gpus", "cpu", "--timeout", "1h30m"]
    planned = fsqueue(*words, "--grace", "2m", "--", "cat", "{input}")
    assert planned.returncode == 0, planned.stderr
    (made,) = PoolReader(str(tmp_path / "pool")).plans()
    (path,) = (tmp_path / "pool" / "spools" / "cpu0").iterdir()
    timeout_s = json.loads(path.read_text())["timeout_s"]
    assert (timeout_s, made.options["grace"]) == (5400.0, 120.0)


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
        Command().prepare({"argv": argv, "grace": 10.0})


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_a_grace_that_is_no_duration_is_refused(seconds: float) -> None:
    options = {"argv": ["cat", "{input}"], "grace": seconds}
    with pytest.raises(UsageError, match="--grace"):
        Command().prepare(options)


def test_a_program_given_by_a_relative_path_is_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = {"argv": ["./count", "{input}"], "grace": 10.0}
    assert Command().prepare(options)["argv"] == [str(tmp_path / "count"), "{input}"]


def test_an_input_that_changed_since_it_was_planned_is_refused_for_good(
    run: Run, tmp_path: Path
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
        options={"argv": list(FOREVER), "grace": 1.0},
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
