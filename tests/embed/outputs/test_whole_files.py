"""A file appears whole, and what a killed writer left is removed by the next."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from embed.outputs import whole_files
from embed.outputs.whole_files import private_folder, whole


@pytest.fixture(autouse=True)
def nothing_removed_yet() -> None:
    whole_files._remove_what_the_killed_left.cache_clear()


def left_by_a_killed_one(path: Path) -> list[str]:
    """Let a child die by SIGKILL while it writes a file and a folder; return what it leaves."""
    child = os.fork()
    if child == 0:
        with whole(path) as private, private_folder(path) as folder:
            private.write_text("half")
            (folder / "part").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    return sorted(os.listdir(path.parent))


def test_what_a_killed_writer_left_is_removed_by_the_next_one(tmp_path: Path) -> None:
    left = left_by_a_killed_one(tmp_path / "x.npz")
    assert len(left) == 2 and all(name.startswith(".x.npz.") for name in left)
    with whole(tmp_path / "y.npz") as private:
        private.write_text("all")
    assert os.listdir(tmp_path) == ["y.npz"]


def test_what_others_are_writing_stays(tmp_path: Path) -> None:
    """Another host's processes are unknown here, and whoever lives goes on."""
    with whole(tmp_path / "ours") as private:
        private.write_text("all")
        elsewhere = tmp_path / ".x.0123456789ab-999999-01234567"
        elsewhere.write_text("half")
        hidden = tmp_path / ".x.npz.999999-01234567"
        hidden.write_text("a person's own")
        whole_files._remove_what_the_killed_left.cache_clear()
        with whole(tmp_path / "mine") as other:
            other.write_text("all")
        assert private.exists() and elsewhere.exists() and hidden.exists()
    assert (tmp_path / "ours").read_text() == (tmp_path / "mine").read_text() == "all"


def test_what_cannot_be_removed_keeps_nobody_from_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user's, in a directory of many."""
    left = left_by_a_killed_one(tmp_path / "x.npz")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        patch.setattr("shutil.rmtree", refuse)
        with whole(tmp_path / "y.npz") as private:
            private.write_text("all")
    assert sorted(os.listdir(tmp_path)) == sorted([*left, "y.npz"])
