"""What each of several workers on one GPU may use, and whether MPS is there."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from fsqueue.cli.gpus import gpus
from fsqueue.errors import UsageError
from fsqueue.gpu.sharing import (
    PER_GPU_MAX,
    mps_directory,
    share_gpu,
    sharing_environ,
    usable_gib,
    workers_per_gpu,
)
from tests.support.nvml.fake_driver import install


@pytest.mark.parametrize(("text", "workers"), [("", 1), ("1", 1), (" 2 ", 2), ("48", 48)])
def test_a_worker_shares_its_gpu_with_as_many_as_its_environment_says(
    text: str, workers: int
) -> None:
    assert workers_per_gpu({"FSQUEUE_PER_GPU": text}) == workers
    assert workers_per_gpu({}) == 1


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", "49", "٣", "9" * 30])
def test_a_number_of_workers_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=f"use 1 to {PER_GPU_MAX}, or unset it"):
        workers_per_gpu({"FSQUEUE_PER_GPU": text})


def test_a_child_is_told_and_one_that_has_the_gpu_to_itself_inherits_nothing() -> None:
    environ = {"FSQUEUE_PER_GPU": "4"}
    share_gpu(3, environ)
    assert workers_per_gpu(environ) == 3
    assert workers_per_gpu(environ | sharing_environ(1)) == 1


def test_half_of_a_card_is_less_than_half_of_what_one_worker_can_use() -> None:
    """The second process has a context of its own."""
    assert usable_gib(24.0) == pytest.approx(22.56)
    assert usable_gib(24.0, 2) == pytest.approx(10.98)
    assert all(4 * usable_gib(80.0, 4) < usable_gib(80.0, n) * n for n in (1, 2, 3))
    assert usable_gib(4.0, 8) == 0.0


def test_mps_is_there_where_its_pipe_is(tmp_path: Path) -> None:
    environ = {"CUDA_MPS_PIPE_DIRECTORY": str(tmp_path)}
    assert mps_directory(environ) is None
    (tmp_path / "control").touch()
    assert mps_directory(environ) is None, "a file is not a pipe"
    (tmp_path / "control").unlink()
    os.mkfifo(tmp_path / "control")
    assert mps_directory(environ) == str(tmp_path)
    assert mps_directory({"CUDA_MPS_PIPE_DIRECTORY": f"{tmp_path}/none"}) is None
    assert mps_directory({"CUDA_MPS_PIPE_DIRECTORY": "\0"}) is None


def test_the_command_shows_mps_and_the_instances_of_a_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = install(monkeypatch, tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    driver.add(0, "NVIDIA H100 80GB HBM3", "GPU-parent", gib=80)
    driver.set(0, mig=1)
    driver.add("0/0", "NVIDIA H100 80GB HBM3 MIG 3g.40gb", "MIG-one", gib=40)
    assert json.loads(CliRunner().invoke(gpus, ["--json"]).stdout)["mps"] is None
    os.mkfifo(tmp_path / "control")
    lines = CliRunner().invoke(gpus, []).stdout.splitlines()
    assert "MIG-one" in lines[1] and "1.07  its part of the card's weight" in lines[1]
    assert lines[2] == f"MPS: {tmp_path}. The workers of one GPU run side by side."
