"""What `fsqueue plan` refuses before it reads an input, and what it says."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from fsqueue.cli import cli
from fsqueue.errors import UsageError
from fsqueue.pool.settings import create_pool, refuse_other_settings

# ---- R46: settings hold or are refused ----


@pytest.mark.parametrize("words, value", [(["--lease", "60"], "30 s"), (["--attempts", "5"], "3")])
def test_R46_a_setting_that_is_not_the_pools_is_refused(
    tmp_path: Path, words: list[str], value: str
) -> None:
    (tmp_path / "a.txt").write_text("a")
    plan = ["plan", "command", str(tmp_path / "pool"), str(tmp_path / "a.txt"), "--gpus", "cpu"]
    tail = ["--", "cat", "{input}"]
    assert CliRunner().invoke(cli, [*plan, *tail]).exit_code == 0
    for dry_run in ([], ["--dry-run"]):
        result = CliRunner().invoke(cli, [*plan, *words, *dry_run, *tail])
        assert isinstance(result.exception, UsageError)
        assert f"was made with {value}" in str(result.exception)
    same = ["--lease", "30s", "--attempts", "3"]
    assert CliRunner().invoke(cli, [*plan, *same, *tail]).exit_code == 0


@pytest.mark.parametrize("lease", ["0", "0.5", "999ms"])
def test_R46_a_lease_with_which_no_pool_could_work_is_refused(tmp_path: Path, lease: str) -> None:
    (tmp_path / "a.txt").write_text("a")
    plan = ["plan", "command", str(tmp_path / "pool"), str(tmp_path / "a.txt"), "--lease", lease]
    result = CliRunner().invoke(cli, [*plan, "--", "cat", "{input}"])
    assert result.exit_code != 0
    assert not (tmp_path / "pool").exists()


def test_R46_two_planners_that_make_one_pool_agree_on_its_settings(tmp_path: Path) -> None:
    pool = create_pool(str(tmp_path / "pool"), lease_s=60.0)
    with pytest.raises(UsageError, match="was made with 60 s"):
        refuse_other_settings(pool, 30.0, None)
