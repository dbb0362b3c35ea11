from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsqueue.gpu import nvidia_smi
from tests.support.nvml.fake_driver import unplug

ASKED = '[ "$*" = "--query-gpu=index,name --format=csv,noheader,nounits" ] || exit 2\n'


@pytest.fixture
def fifo(tmp_path: Path) -> Iterator[Path]:
    """A file that keeps its reader waiting until the test is over."""
    path = tmp_path / "never"
    os.mkfifo(path)
    yield path
    os.close(os.open(path, os.O_RDWR))


def ask(directory: Path, patch: pytest.MonkeyPatch, script: str) -> list[list[str]]:
    unplug(patch, directory, script)
    return nvidia_smi.query("index", "name")


def test_each_gpu_is_a_row_of_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = ASKED + 'echo "0, NVIDIA L4 "; echo "1, [N/A]"'
    assert ask(tmp_path, monkeypatch, script) == [["0", "NVIDIA L4"], ["1", "[N/A]"]]


@pytest.mark.parametrize(
    "script",
    [
        'echo "No devices were found"; exit 6',
        'echo "NVIDIA-SMI has failed because it could not communicate with the driver"',
        'echo "0, NVIDIA L4"; exit 15',
        'echo "0, NVIDIA L4, and more"',
        "printf '\\377\\376\\000\"'",
        "kill -9 $$",
        "true",
    ],
)
def test_what_is_not_an_answer_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    assert ask(tmp_path, monkeypatch, script) == []


def test_a_program_that_is_not_there_or_cannot_run_is_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unplug(monkeypatch, tmp_path)
    assert nvidia_smi.query("index") == []
    (tmp_path / "bin" / "nvidia-smi").write_text("not executable")
    assert nvidia_smi.query("index") == []


def test_a_hung_program_is_killed_though_its_child_keeps_the_pipe_open(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fifo: Path,
) -> None:
    unplug(monkeypatch, tmp_path, f'echo $$ > "{tmp_path}/pid"; cat "{fifo}"; echo')
    assert nvidia_smi.query("index", timeout_s=0.1) == []  # and the test itself hangs if this waits
    assert "did not answer within 0.1 s" in caplog.text
    pid_file = tmp_path / "pid"
    if pid_file.exists():  # on a very busy machine it was killed before its first line
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid_file.read_text()), 0)


@pytest.mark.slow
def test_a_program_that_cannot_be_killed_is_left_behind(
    fifo: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    program = subprocess.Popen(["cat", fifo], stdout=subprocess.PIPE, text=True)
    program.kill = lambda: None  # type: ignore[method-assign]  # as if it slept in the driver
    nvidia_smi._abandon(program)
    assert "cannot be killed" in caplog.text
    os.close(os.open(fifo, os.O_RDWR))
    program.wait(timeout=30)
