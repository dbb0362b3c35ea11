"""A card that cannot hold the model gets nothing; one that turns out too small costs nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fsqueue.errors import ExitStatus, UsageError
from fsqueue.handler import load_handler
from fsqueue.pool.layout import State
from fsqueue.pool.settings import PoolDirectory, create_pool
from fsqueue.scheduling.planner import PlanRequest as Request
from fsqueue.scheduling.planner import PlanResult, choose_spools, plan_into
from tests.support.nvml.fake_driver import Driver
from tests.support.planning import plan
from tests.support.pools import names_in
from tests.support.processes import fsqueue

SHAPE_15B = {"num_hidden_layers": 48, "hidden_size": 5120, "intermediate_size": 20480}
OLD_CARD = """
from embed.engine import devices
from fsqueue.cli import main
from tests.support.simulated_device import SimulatedDevice

devices.choose_device = lambda warn: SimulatedDevice(capability=(7, 5), name="Tesla T4")
main()
"""
SMALL_CARD = """
import torch
from embed.engine import devices
from embed.models import families
from fsqueue.cli import main
from tests.support.simulated_device import SimulatedDevice

def load(*given):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 10")

devices.choose_device = lambda warn: SimulatedDevice(capability=(8, 6), free=1 << 30)
families.load = load
main()
"""


@pytest.fixture
def model_15b(tiny_model: Path, tmp_path: Path) -> Path:
    """A folder that says it is of the largest published shape; its weights are never loaded."""
    folder = shutil.copytree(tiny_model, tmp_path / "esm2_15b")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | SHAPE_15B))
    return folder


def planned(tmp_path: Path, model: Path, gpus: str, dtype: str, per_gpu: int = 1) -> PlanResult:
    handler = load_handler("embed")
    options = {option.name: option.default for option in handler.options}
    options = handler.prepare(options | {"model": str(model), "dtype": dtype})
    path = tmp_path / "in.faa"
    path.write_text("".join(f">s{n}\nMKVLAAGIVGLC\n" for n in range(200)))
    spools = choose_spools(None, gpus)
    pool = create_pool(str(tmp_path / "pool"))
    return plan_into(pool, Request(handler, options, [str(path)], spools, per_gpu=per_gpu))


def test_spools_of_cards_that_cannot_hold_the_model_get_nothing_and_the_table_says_why(
    tmp_path: Path, model_15b: Path
) -> None:
    found = planned(tmp_path, model_15b, "3080,4090,h100", "bfloat16")
    counts = {name: share.claims for name, share in found.shares.items()}
    assert counts["gpu0"] == counts["gpu1"] == 0 < counts["gpu2"] == found.total.claims
    assert found.too_small == {
        "gpu0": "needs 28.6 GiB, has 12", "gpu1": "needs 28.6 GiB, has 24"
    }  # fmt: skip


def test_the_command_says_why_a_spool_gets_nothing(tmp_path: Path, model_15b: Path) -> None:
    path = tmp_path / "in.faa"
    path.write_text(">a\nMKV\n")
    words = ["plan", "embed", tmp_path / "pool", path, "--model", model_15b, "--dtype", "bfloat16"]
    done = fsqueue(*words, "--gpus", "3080,4090,h100", "--dry-run")
    assert "gpu1 gets no claims: its GPU is too small for them (needs 28.6 GiB, has 24)." in (
        done.stdout
    )
    done = fsqueue(*words, "--gpus", "3080,4090")
    assert done.returncode == ExitStatus.USAGE
    assert "no GPU of this plan can hold the work" in done.stderr


def test_workers_that_share_a_card_each_need_the_memory(tmp_path: Path, model_15b: Path) -> None:
    """28.6 GiB fit into half of an H100, and not into half of an RTX A6000, nor a third of one."""
    found = planned(tmp_path, model_15b, "a6000,h100", "bfloat16", per_gpu=2)
    assert found.too_small == {"gpu0": "needs 28.6 GiB, has 48 for 2 workers"}
    with pytest.raises(UsageError, match="for each of the 3 workers of a GPU.*fewer workers"):
        planned(tmp_path, model_15b, "a6000,h100", "bfloat16", per_gpu=3)


def test_a_size_in_the_name_and_the_precision_count(tmp_path: Path, model_15b: Path) -> None:
    with pytest.raises(UsageError, match=r"needs 56\.8 GiB of memory at least: A100"):
        planned(tmp_path, model_15b, "a100-40gb", "float32")
    found = planned(tmp_path, model_15b, "a100-40gb,cpu,something-new", "bfloat16")
    assert not found.too_small, "half precision fits, and what is unknown is not left out"


def test_models_that_fit_everywhere_are_planned_as_before(tmp_path: Path, tiny_model: Path) -> None:
    found = planned(tmp_path, tiny_model, "3080,4090,h100", "float32")
    assert not found.too_small and all(share.claims for share in found.shares.values())


def test_a_worker_whose_card_turns_out_too_small_leaves_the_kind_and_charges_nothing(
    tmp_path: Path, tiny_model: Path
) -> None:
    path = tmp_path / "in.faa"
    path.write_text("".join(f">s{n}\nMKVLAAGIVGLC\n" for n in range(50)))
    handler = load_handler("embed")
    options = {option.name: option.default for option in handler.options}
    pool, _ = plan(
        tmp_path / "pool", handler, [path], options | {"model": str(tiny_model)}, model="RTX 3080"
    )
    waiting = sorted(name.id for name in names_in(pool, State.WAITING))
    driver = Driver(tmp_path)
    driver.add(0, "NVIDIA GeForce RTX 3080", "GPU-3080", gib=10)
    done = work(pool, driver, SMALL_CARD)
    assert done.returncode == ExitStatus.WORK_REMAINS, done.stderr
    assert "are left to other workers" in done.stderr
    assert "does not fit into this device's memory" in done.stderr
    check_untouched(pool, waiting)


def test_a_worker_whose_card_only_emulates_the_precision_leaves_the_kind_and_says_what_to_plan(
    tmp_path: Path, tiny_model: Path
) -> None:
    path = tmp_path / "in.faa"
    path.write_text("".join(f">s{n}\nMKVLAAGIVGLC\n" for n in range(50)))
    handler = load_handler("embed")
    options = {option.name: option.default for option in handler.options}
    options |= {"model": str(tiny_model), "dtype": "bfloat16"}
    pool, _ = plan(tmp_path / "pool", handler, [path], options, model="T4")
    waiting = sorted(name.id for name in names_in(pool, State.WAITING))
    driver = Driver(tmp_path)
    driver.add(0, "Tesla T4", "GPU-t4", gib=16)
    done = work(pool, driver, OLD_CARD)
    assert done.returncode == ExitStatus.WORK_REMAINS, done.stderr
    assert "this GPU only emulates bfloat16" in done.stderr
    assert "Plan with --dtype float16 for such cards" in done.stderr
    check_untouched(pool, waiting)


def check_untouched(pool: PoolDirectory, waiting: list[str]) -> None:
    left = names_in(pool, State.WAITING)
    assert sorted(name.id for name in left) == waiting
    assert {name.attempt for name in left} == {0}, "no claim was charged"
    assert not names_in(pool, State.FAILED, State.DONE, State.RUNNING)


def work(pool: PoolDirectory, driver: Driver, code: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", code, "work", pool.root, "--linger", "0"]
    environment = {**os.environ, **driver.environ, "PYTHONPATH": str(root)}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
