"""A file appears whole, and leftovers of a killed writer are removed by the next."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from embed.outputs import atomic_write as module
from embed.outputs.atomic_write import atomic_write, private_folder


@pytest.fixture(autouse=True)
def forget_removed_leftovers() -> None:
    module._remove_leftovers.cache_clear()


def leftovers_of_a_killed_writer(path: Path) -> list[str]:
    """Kill a child while it writes a file and a folder; return what it leaves behind."""
    child = os.fork()
    if child == 0:
        with atomic_write(path) as private, private_folder(path) as folder:
            private.write_text("half")
            (folder / "part").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    return sorted(os.listdir(path.parent))


def test_leftovers_of_a_killed_writer_are_removed_by_the_next(tmp_path: Path) -> None:
    left = leftovers_of_a_killed_writer(tmp_path / "x.npz")
    assert len(left) == 2 and all(name.startswith(".x.npz.") for name in left)
    with atomic_write(tmp_path / "y.npz") as private:
        private.write_text("all")
    assert os.listdir(tmp_path) == ["y.npz"]


def test_files_of_other_writers_are_kept(tmp_path: Path) -> None:
    """Those of other hosts, whose processes are unknown, and those of living processes."""
    with atomic_write(tmp_path / "ours") as private:
        private.write_text("all")
        elsewhere = tmp_path / ".x.0123456789ab-999999-01234567"
        elsewhere.write_text("half")
        hidden = tmp_path / ".x.npz.999999-01234567"
        hidden.write_text("a person's own")
        module._remove_leftovers.cache_clear()
        with atomic_write(tmp_path / "mine") as other:
            other.write_text("all")
        assert private.exists() and elsewhere.exists() and hidden.exists()
    assert (tmp_path / "ours").read_text() == (tmp_path / "mine").read_text() == "all"


def test_leftovers_that_cannot_be_removed_do_not_prevent_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may be another user's, in a shared directory."""
    left = leftovers_of_a_killed_writer(tmp_path / "x.npz")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        patch.setattr("shutil.rmtree", refuse)
        with atomic_write(tmp_path / "y.npz") as private:
            private.write_text("all")
    assert sorted(os.listdir(tmp_path)) == sorted([*left, "y.npz"])
