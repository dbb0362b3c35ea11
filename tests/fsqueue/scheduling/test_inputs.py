"""Each thing in a named directory is planned, or named as left out (R47)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fsqueue.cli import cli
from fsqueue.scheduling.inputs import find_inputs

needs_user = pytest.mark.skipif(os.geteuid() == 0, reason="root can read everything")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory with two inputs and one of everything else."""
    folder = tmp_path / "in"
    (folder / "sub" / "deeper").mkdir(parents=True)
    for name in ("a.faa", "b.faa", "a.faa.fai", "b.faa.md5", ".hidden", "sub/c.faa", "alone.fai"):
        (folder / name).write_text(name)
    (folder / "sub" / "deeper" / "d.faa").write_text("d")
    (folder / "gone.faa").symlink_to(tmp_path / "nowhere")
    (folder / "loop").symlink_to(folder)
    os.mkfifo(folder / "pipe")
    return folder


def names(paths: list[str], folder: Path) -> list[str]:
    return [os.path.relpath(path, folder) for path in paths]


def test_R47_everything_in_a_directory_is_planned_or_named(folder: Path) -> None:
    found = find_inputs([str(folder)])
    assert names(found.paths, folder) == ["a.faa", "alone.fai", "b.faa"]
    (broken,) = found.broken
    assert "gone.faa: is a link that leads nowhere" in broken
    left_out = [path for paths in found.left_out.values() for path in paths]
    seen = names([*found.paths, *left_out], folder) + ["gone.faa"]
    assert sorted(seen) == sorted(os.listdir(folder))
    notes = "\n".join(found.notes)
    assert f"2 sub-directories ({folder}/loop, {folder}/sub); --recursive" in notes
    assert f"1 hidden file ({folder}/.hidden)" in notes
    assert f"1 device, pipe or socket ({folder}/pipe)" in notes
    assert "2 indexes and checksums of inputs (.fai, .md5)" in notes


def test_R47_recursive_plans_the_files_below_and_follows_no_link(folder: Path) -> None:
    found = find_inputs([str(folder)], recursive=True)
    assert names(found.paths, folder) == [
        "a.faa",
        "alone.fai",
        "b.faa",
        "sub/c.faa",
        "sub/deeper/d.faa",
    ]
    assert any("1 link to a directory" in note for note in found.notes)


def test_R47_a_companion_that_a_shell_names_is_left_out_too(folder: Path) -> None:
    found = find_inputs([str(folder / "a.faa"), str(folder / "a.faa.fai")])
    assert names(found.paths, folder) == ["a.faa"]


def test_R47_an_index_or_checksum_on_its_own_is_an_input(folder: Path) -> None:
    found = find_inputs([str(folder / "a.faa.fai"), str(folder / "b.faa.md5")])
    assert names(found.paths, folder) == ["a.faa.fai", "b.faa.md5"] and not found.notes


@needs_user
def test_R47_a_file_that_cannot_be_read_is_named(folder: Path) -> None:
    (folder / "b.faa").chmod(0)
    assert any("b.faa: you may not read it" in line for line in find_inputs([str(folder)]).broken)


def test_a_list_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(b"\xef\xbb\xbfa.fa\r\nb.fa\r\n")
    assert find_inputs([f"@{tmp_path}/list"]).paths == [f"{tmp_path}/a.fa", f"{tmp_path}/b.fa"]


def test_the_paths_of_a_list_are_relative_to_its_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "list").write_text("a.fa\n../b.fa\n")
    monkeypatch.chdir("/")
    found = find_inputs([f"@{tmp_path}/lists/list"]).paths
    assert found == [f"{tmp_path}/lists/a.fa", f"{tmp_path}/b.fa"]


# ---- the command ----


def plan(tmp_path: Path, *words: str) -> Result:
    words = ("plan", "command", str(tmp_path / "pool"), *words, "--gpus", "cpu")
    return CliRunner().invoke(cli, [*words, "--", "cat", "{input}"])


def test_R47_a_harmless_index_does_not_fail_a_plan(tmp_path: Path) -> None:
    for name in ("a.faa", "a.faa.fai"):
        (tmp_path / name).write_text("a")
    result = plan(tmp_path, str(tmp_path / "a.faa"), str(tmp_path / "a.faa.fai"))
    assert result.exit_code == 0 and "1 claim planned" in result.output
    assert "left out: 1 index or checksum of an input (.fai)" in result.output


def test_R47_a_broken_link_in_a_directory_is_an_input_that_could_not_be_planned(
    tmp_path: Path, folder: Path
) -> None:
    result = plan(tmp_path, str(folder))
    assert result.exit_code == 1
    assert "gone.faa: is a link that leads nowhere" in result.output
    assert "3 claims planned" in result.output and "2 sub-directories" in result.output


def test_R47_recursive_on_the_command_line(tmp_path: Path, folder: Path) -> None:
    (folder / "gone.faa").unlink()
    result = plan(tmp_path, str(folder), "--recursive")
    assert result.exit_code == 0 and "5 claims planned" in result.output


def test_R47_a_directory_with_nothing_to_plan_says_what_it_left_out(
    tmp_path: Path, folder: Path
) -> None:
    empty = tmp_path / "empty"
    (empty / "sub").mkdir(parents=True)
    result = plan(tmp_path, str(empty))
    assert "1 sub-directory" in str(result.exception)
