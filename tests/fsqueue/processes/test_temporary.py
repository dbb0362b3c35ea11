"""A program's temporary directory."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path

import pytest

from fsqueue.processes.temporary import TemporaryDirectory, remove


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary directories are made."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_r25_it_is_private_empty_and_named_after_its_worker(place: Path) -> None:
    one = TemporaryDirectory()
    path = Path(one.take("node7-1-aaaaaa"))
    assert path.parent == place
    assert path.name.startswith("fsqueue-node7-1-aaaaaa-")
    assert path.stat().st_mode & 0o777 == 0o700
    assert list(path.iterdir()) == []


def test_r25_one_that_was_left_empty_serves_the_next_run(place: Path) -> None:
    one = TemporaryDirectory()
    path = one.take("w")
    one.give_back()
    assert one.take("w") == path


def test_r25_it_goes_with_what_used_it_even_if_nothing_removes_it(place: Path) -> None:
    one = TemporaryDirectory()
    Path(one.take("w"), "file").write_text("left")
    del one
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("how", ["a file", "another mode", "removed", "a link", "a writer is left"])
def test_r25_one_that_a_run_did_not_leave_as_it_was_serves_no_other(place: Path, how: str) -> None:
    one = TemporaryDirectory()
    path = Path(one.take("w"))
    if how == "a file":
        (path / "deep" / "er").mkdir(parents=True)
        (path / "deep" / "er" / "file").write_text("left")
    elif how == "another mode":
        path.chmod(0o777)
    elif how == "removed":
        path.rmdir()
    elif how == "a link":
        path.rmdir()
        path.symlink_to("/")
    one.give_back(reusable=how != "a writer is left")
    assert list(place.iterdir()) == []
    assert one.take("w") != str(path)


def test_r25_a_read_only_tree_is_removed(place: Path) -> None:
    tree = place / "cache"
    (tree / "module").mkdir(parents=True)
    (tree / "module" / "file").write_text("x")
    (tree / "module").chmod(0o500)
    tree.chmod(0o500)
    remove(str(tree))
    assert list(place.iterdir()) == []


def test_r25_links_are_removed_and_not_followed(place: Path) -> None:
    (place / "kept").mkdir()
    (place / "kept" / "file").write_text("x")
    (place / "tree").mkdir()
    (place / "tree" / "link").symlink_to("../kept")
    remove(str(place / "tree"))
    assert os.listdir(place) == ["kept"]
    assert os.listdir(place / "kept") == ["file"]


def test_r25_what_cannot_be_removed_is_logged_and_no_error(
    place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tree = place / "tree"
    tree.mkdir()
    (tree / "stuck").write_text("x")
    (tree / "other").write_text("x")
    unlink = os.unlink

    def refuse(path: str) -> None:
        if path.endswith("stuck"):
            raise PermissionError(1, "Operation not permitted", path)
        unlink(path)

    monkeypatch.setattr(os, "unlink", refuse)
    with caplog.at_level(logging.DEBUG):
        remove(str(tree))
    assert os.listdir(tree) == ["stuck"]
    assert "stuck is left behind" in caplog.text


def test_removing_what_is_not_there_is_no_error(place: Path) -> None:
    remove(str(place / "nothing"))
    one = TemporaryDirectory()
    one.give_back()
    one.remove()
