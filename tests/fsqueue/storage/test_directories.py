"""Directories of a pool, made and removed while other processes do the same."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fsqueue.storage import directories
from tests.support.interleave import interpose, refused


def test_discarding_a_missing_directory_succeeds(tmp_path: Path) -> None:
    directories.discard(f"{tmp_path}/gone")
    directories.discard_empty(f"{tmp_path}/gone")


def test_a_tree_is_discarded_with_the_directories_a_handler_made_in_it(tmp_path: Path) -> None:
    tree = tmp_path / "scratch"
    (tree / "deep" / "deeper").mkdir(parents=True)
    (tree / "deep" / "deeper" / "file").touch()
    (tree / "file").touch()
    (tree / "link").symlink_to(tmp_path)
    (tmp_path / "not mine").touch()
    directories.discard(str(tree))
    assert os.listdir(tmp_path) == ["not mine"]


def test_a_tree_that_is_being_filled_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tmp_path / "partial"
    tree.mkdir()

    def rmdir(real: Callable[[str], None], path: str) -> None:
        (tree / "new").touch()
        real(path)

    interpose(monkeypatch, rmdir=rmdir)
    directories.discard(str(tree))
    assert os.listdir(tree) == ["new"]


def test_a_directory_that_another_host_removed_counts_as_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This mount still shows the directory, but its handle is stale."""
    interpose(monkeypatch, open=refused(errno.ESTALE))
    assert not directories.empty(str(tmp_path))


def test_an_empty_directory_is_removed_and_a_full_one_is_not(tmp_path: Path) -> None:
    empty, full = tmp_path / "empty", tmp_path / "full"
    empty.mkdir()
    full.mkdir()
    (full / "claim").touch()
    directories.discard_empty(str(empty))
    directories.discard_empty(str(full))
    assert os.listdir(tmp_path) == ["full"]


def test_making_an_existing_directory_succeeds(tmp_path: Path) -> None:
    directories.make(f"{tmp_path}/a")
    directories.make(f"{tmp_path}/a")
    assert os.listdir(tmp_path) == ["a"]
