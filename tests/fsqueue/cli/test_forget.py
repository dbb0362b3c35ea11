"""`fsqueue forget`, and planning a touched or changed input again, as a user types them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fsqueue.cli import cli
from fsqueue.errors import UsageError
from fsqueue.pool.settings import PoolDirectory
from tests.support.monitor_data import fail, finish
from tests.support.pools import make_pool

A = "node7-1-aaaaaa"


@pytest.fixture
def pool(tmp_path: Path) -> PoolDirectory:
    pool = make_pool(tmp_path / "pool", "a.40", "b.30", "c.20", attempts=1)
    fail(pool, A)
    fail(pool, A)
    finish(pool, A)
    return pool


def run(*words: str, status: int = 0) -> Result:
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == status, (result.output, result.exception)
    return result


def failed_ids(pool: PoolDirectory) -> list[str]:
    facts = json.loads(run("failed", pool.root, "--json").stdout)
    return [claim["id"] for claim in facts["failed"]]


def test_forgotten_claims_no_longer_fail_the_pool(pool: PoolDirectory) -> None:
    first, second = failed_ids(pool)
    run("status", pool.root, status=3)
    assert "1 claim would be forgotten" in run("forget", pool.root, first, "--dry-run").stdout
    assert run("forget", pool.root, first).stdout == f"{first}\n1 claim forgotten.\n"
    assert failed_ids(pool) == [second]
    assert "1 failed, 1 forgotten" in run("status", pool.root, status=3).stdout
    assert json.loads(run("forget", pool.root, "--all", "--json").stdout) == {"claims": [second]}
    assert "1 of 3 done, 2 forgotten" in run("wait", pool.root).stdout
    assert json.loads(run("status", pool.root, "--json").stdout)["forgotten"] == 2
    assert "No claim failed." in run("failed", pool.root).stdout
    assert "forgotten: given up for good" in run("failed", pool.root, "--log", first).stdout


def test_forget_needs_ids_or_all(pool: PoolDirectory) -> None:
    for words in ([], ["x", "--all"]):
        result = CliRunner().invoke(cli, ["forget", pool.root, *words])
        assert isinstance(result.exception, UsageError)


def test_R43_a_touched_input_planned_again_does_not_fail_for_ever(tmp_path: Path) -> None:
    source = tmp_path / "a.txt"
    source.write_text("one\n")
    root = str(tmp_path / "pool")
    words = ["plan", "command", root, str(source), "--gpus", "cpu", "--attempts", "1"]
    words += ["--", "cat", "{input}"]
    run(*words)
    os.utime(source, (1, 1))
    assert "1 claim of former versions superseded" in run(*words).stdout
    assert "1 superseded" in run("status", root, status=5).stdout
