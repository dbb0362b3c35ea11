"""Outputs replace neither inputs nor anything that is not ours (R36-R38)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from fsqueue.cli import cli
from fsqueue.errors import UsageError
from fsqueue.pool.overwriting import Earlier, refuse_overwriting

needs_user = pytest.mark.skipif(os.geteuid() == 0, reason="root can write everywhere")


def same(path: str) -> Earlier:
    return Earlier.SAME


@pytest.fixture
def pool(tmp_path: Path) -> str:
    (tmp_path / "a.txt").write_text("precious")
    root = str(tmp_path / "pool")
    words = ["plan", "command", root, str(tmp_path / "a.txt"), "--gpus", "cpu"]
    assert CliRunner().invoke(cli, [*words, "--", "cat", "{input}"]).exit_code == 0
    return root


def test_a_name_that_is_free_may_be_written(tmp_path: Path) -> None:
    refuse_overwriting(tmp_path / "new" / "file", inputs=["/else"], recognise=same)


@pytest.mark.parametrize("how", ["itself", "symlink", "hardlink", "dots", "to_symlink"])
def test_R36_an_input_is_never_replaced_whatever_it_is_called(tmp_path: Path, how: str) -> None:
    source = tmp_path / "a.faa"
    source.write_text(">a\nMK\n")
    target, planned = tmp_path / "out", source
    if how == "itself":
        target = source
    elif how == "symlink":
        target.symlink_to(source)
    elif how == "hardlink":
        target.hardlink_to(source)
    elif how == "dots":
        target = tmp_path / "." / ".." / tmp_path.name / "a.faa"
    else:
        planned = tmp_path / "link.faa"
        planned.symlink_to(source)
        target = source
    for force in (False, True):
        with pytest.raises(UsageError, match="is the input"):
            refuse_overwriting(target, inputs=[str(planned)], recognise=same, force=force)


def test_R36_an_input_that_is_gone_keeps_its_name(tmp_path: Path) -> None:
    gone = str(tmp_path / "gone.faa")
    with pytest.raises(UsageError, match="is the input"):
        refuse_overwriting(gone, inputs=[gone], recognise=same)


@pytest.mark.parametrize("force", [False, True])
def test_R37_a_file_that_is_not_ours_is_never_replaced(tmp_path: Path, force: bool) -> None:
    path = tmp_path / "thesis.html"
    path.write_text("five years")
    with pytest.raises(UsageError, match="never replaces"):
        refuse_overwriting(path, recognise=lambda _: Earlier.FOREIGN, force=force)


def test_R37_what_is_not_a_file_is_never_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("pipe", "dangling"):
        with pytest.raises(UsageError, match="is not a file"):
            refuse_overwriting(tmp_path / name, recognise=same)
    with pytest.raises(UsageError, match="is a directory"):
        refuse_overwriting(tmp_path, recognise=same)


def test_R38_another_result_is_replaced_only_by_force(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("")
    with pytest.raises(UsageError, match="--force"):
        refuse_overwriting(path, recognise=lambda _: Earlier.OTHER)
    refuse_overwriting(path, recognise=lambda _: Earlier.OTHER, force=True)
    refuse_overwriting(path, recognise=same)


def test_a_parent_that_is_a_file_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is not a directory"):
        refuse_overwriting(tmp_path / "file" / "out", recognise=same)


@needs_user
def test_a_directory_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o555)
    with pytest.raises(UsageError, match="cannot write into"):
        refuse_overwriting(tmp_path / "closed" / "out", recognise=same)


# ---- the commands ----


@pytest.mark.parametrize("command", ["report", "trace"])
def test_R36_report_and_trace_do_not_destroy_an_input(
    pool: str, tmp_path: Path, command: str
) -> None:
    target = str(tmp_path / "a.txt")
    for force in ([], ["--force"]):
        result = CliRunner().invoke(cli, [command, pool, "-o", target, *force])
        assert isinstance(result.exception, UsageError) and "is the input" in str(result.exception)
    assert (tmp_path / "a.txt").read_text() == "precious"
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "pool"]


@pytest.mark.parametrize("command, other", [("report", "trace"), ("trace", "report")])
def test_R37_R38_report_and_trace_replace_their_own_files(
    pool: str, tmp_path: Path, command: str, other: str
) -> None:
    target = tmp_path / "out"
    target.write_text("mine")
    result = CliRunner().invoke(cli, [command, pool, "-o", str(target), "--force"])
    assert isinstance(result.exception, UsageError) and target.read_text() == "mine"
    target.unlink()
    for words in ([command], [command], [other, "--force"], [command, "--force"]):
        result = CliRunner().invoke(cli, [words[0], pool, "-o", str(target), *words[1:]])
        assert result.exception is None, result.exception
    result = CliRunner().invoke(cli, [other, pool, "-o", str(target)])
    assert isinstance(result.exception, UsageError) and "--force" in str(result.exception)


def test_R37_a_text_file_for_prometheus_replaces_only_its_own(pool: str, tmp_path: Path) -> None:
    target = tmp_path / "pool.prom"
    words = ["watch", pool, "--once", "--metrics-only", "--textfile", str(target)]
    for _ in range(2):
        assert CliRunner().invoke(cli, words).exit_code == 5
    assert target.read_text().startswith("# HELP fsqueue_")
    target.write_text("node_load1 0.5\n")
    assert isinstance(CliRunner().invoke(cli, words).exception, UsageError)
    assert target.read_text() == "node_load1 0.5\n"


@pytest.mark.parametrize(
    "name", ["outputs/x.html", "pool.json", "plans/000001.json", "x/../done/y"]
)
def test_R37_nothing_is_written_into_a_pools_own_directories(pool: str, name: str) -> None:
    result = CliRunner().invoke(cli, ["report", pool, "-o", f"{pool}/{name}", "--force"])
    assert isinstance(result.exception, UsageError) and "inside the pool" in str(result.exception)
