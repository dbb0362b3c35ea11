"""`failed`, `retry` and `cancel` choose claims by error, exit status, kind and input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import fsqueue
from fsqueue import Matching
from fsqueue.history.select import exit_status_in
from tests.support.processes import fsqueue as run_fsqueue

PROGRAM = 'case "$1" in *good*) cat "$1";; *kill*) kill -KILL $$;; *) cat "$1" >&2; exit 3;; esac'


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool in which one claim is done, two exited with 3, one was killed."""
    directory = tmp_path_factory.mktemp("select")
    texts = directory / "texts"
    texts.mkdir()
    for name, text in (
        ("good.txt", "fine"),
        ("one.fa", "CUDA out of memory"),
        ("two.fa", "no such model"),
        ("kill.txt", ""),
    ):
        (texts / name).write_text(text)
    argv = {"argv": ["sh", "-c", PROGRAM, "sh", "{input}"]}
    pool = directory / "pool"
    fsqueue.plan(pool, "command", texts, argv, gpus="cpu", attempts_max=1)
    assert run_fsqueue("work", pool).returncode == 3
    return pool


def chosen(pool: Path, *words: str) -> list[str]:
    done = run_fsqueue("retry", pool, *words, "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    return sorted(claim["id"].rpartition("-")[0] for claim in json.loads(done.stdout)["claims"])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), ["kill", "one", "two"]),
        (("--error", "OUT OF MEMORY"), ["one"]),
        (("--error", "exited with status"), ["one", "two"]),
        (("--exit", "3"), ["one", "two"]),
        (("--exit", "137"), ["kill"]),
        (("--input", "*.fa"), ["one", "two"]),
        (("--input", "*/texts/k*"), ["kill"]),
        (("--kind", "command"), ["kill", "one", "two"]),
        (("--kind", "other"), []),
        (("--exit", "3", "--error", "model"), ["two"]),
    ],
)
def test_all_that_is_asked_for_must_match(
    finished: Path, words: tuple[str, ...], expected: list[str]
) -> None:
    assert chosen(finished, *words) == expected


def test_failed_lists_what_matches(finished: Path) -> None:
    done = run_fsqueue("failed", finished, "--error", "no such model")
    assert "two-" in done.stdout and "one-" not in done.stdout
    none = run_fsqueue("failed", finished, "--exit", "99")
    assert none.stdout == "No failed claim matches.\n"
    both = run_fsqueue("failed", finished, "--log", "x", "--exit", "99")
    assert both.returncode == 2


def test_cancel_chooses_waiting_claims_by_input(tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    for name in ("a.fa", "b.fa", "c.txt"):
        (texts / name).write_text(name)
    pool = tmp_path / "pool"
    fsqueue.plan(pool, "command", texts, {"argv": ["cat", "{input}"]}, gpus="cpu")
    done = run_fsqueue("cancel", pool, "--input", "*.fa")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "2 claims cancelled.")
    assert run_fsqueue("cancel", pool).returncode == 2
    assert run_fsqueue("cancel", pool, "--all", "--input", "x").returncode == 2
    opened = fsqueue.open_pool(pool)
    assert opened.cancel(matching=Matching(inputs="*.nothing")).cancelled == ()
    assert len(opened.retry(matching=Matching(inputs="*/a.fa"))) == 1


def test_an_exit_status_is_shown_as_a_shell_does() -> None:
    assert exit_status_in({"returncode": 3}) == 3
    assert exit_status_in({"returncode": -9}) == 137
    assert exit_status_in({}) is None and exit_status_in({"returncode": "3"}) is None
