"""Calibration measures, prints a line to type, and changes nothing."""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from embed.cli.calibrate import _more_options, _run_command, how_busy
from embed.handlers.calibrate import Calibration, SideBySide, calibrate
from embed.models.cost import PER_SECOND
from embed.options import OPTIONS
from tests.support.generic_models import write_model
from tests.support.processes import fsqueue
from tests.support.simulated_device import SimulatedDevice


def made(cost: float, seconds: float = 10.0, *, on_gpu: bool = False) -> Calibration:
    return Calibration("m", "float32", "cpu", seconds, 1.0, 10, 2000, int(cost), on_gpu)


def test_a_weight_is_the_speed_relative_to_an_rtx_3090() -> None:
    assert made(10 * PER_SECOND).weight == 1.0
    assert made(15.04 * PER_SECOND).weight == 1.5
    assert made(0.1234 * PER_SECOND).weight == 0.012
    assert made(0).weight == 1e-6, "a weight is above 0"


@pytest.mark.slow
def test_it_prints_a_weight_that_plan_accepts(tiny_model: Path, tmp_path: Path) -> None:
    before = sorted(os.listdir(tiny_model))
    run = fsqueue("embed", "calibrate", tiny_model, "--seconds", "1", "--json")
    assert run.returncode == 0, run.stderr
    facts = json.loads(run.stdout)
    assert facts["seconds"] >= 1 and facts["sequences"] > 0 and facts["residues"] > 0
    assert facts["type"] == f"--weight cpu={facts['weight']:g}"
    assert sorted(os.listdir(tiny_model)) == before
    (tmp_path / "x.faa").write_text(">a\nMKV\n")
    words = ["--model", tiny_model, "--gpus", "cpu", *facts["type"].split(), "--json", "--dry-run"]
    plan = fsqueue("plan", "embed", tmp_path / "pool", tmp_path / "x.faa", *words)
    assert plan.returncode == 0, plan.stderr
    assert json.loads(plan.stdout)["spools"][0]["weight"] == facts["weight"]


def test_a_gpu_is_measured_with_several_batches_in_flight(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = SimulatedDevice(capability=(8, 6))
    monkeypatch.setattr("embed.engine.devices.choose_device", lambda warn: card)
    options = {option.name: option.default for option in OPTIONS} | {"model": str(tiny_model)}
    found = calibrate(options, 1.0)
    assert (found.device, found.on_gpu) == ("NVIDIA Simulated", True)
    assert card.in_flight_max == card.ahead
    assert found.seconds >= 1.0 and len(card.launches) > 3
    assert 100 <= found.residues / found.sequences <= 500
    assert found.weight == pytest.approx(found.cost_per_s / PER_SECOND, rel=0.05)


# ---- several at once ----


@pytest.mark.parametrize(
    ("each", "best"), [((1.0, 1.0), 2), ((0.6, 0.6), 2), ((0.52, 0.52), 1), ((0.4, 0.4), 1)]
)
def test_several_workers_must_be_faster_by_enough_to_be_worth_their_memory(
    each: tuple[float, ...], best: int
) -> None:
    found = SideBySide(made(1e9), tuple(made(1e9 * share) for share in each))
    assert found.gain == pytest.approx(sum(each))
    assert found.best == best


def test_a_gpu_is_weighed_as_all_its_workers_and_a_cpu_worker_as_itself() -> None:
    several = [made(8 * PER_SECOND, on_gpu=on_gpu) for on_gpu in (True, False)]
    gpu, cpu = (SideBySide(replace(each, cost=10 * PER_SECOND), (each, each)) for each in several)
    assert (gpu.gain, gpu.weight) == (1.6, 1.6)
    assert (cpu.gain, cpu.weight) == (1.6, 0.8), "each has a spool of its own"
    assert _more_options(gpu) == " --per-gpu 2" and _more_options(cpu) == " --gpus cpux2"
    assert _run_command(gpu) == "fsqueue run POOL --per-gpu 2"
    assert _run_command(cpu) == "fsqueue run POOL --workers 2"
    alone = SideBySide(made(PER_SECOND, on_gpu=True), (made(PER_SECOND / 2, on_gpu=True),) * 2)
    assert _run_command(alone) == "fsqueue run POOL" and _more_options(alone) == ""


def test_a_machine_that_is_busy_with_something_else_is_said_to_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    monkeypatch.setattr(os, "getloadavg", lambda: (6.1, 0.0, 0.0))
    assert "busy already (load 6.1, 4 cores)" in how_busy()
    monkeypatch.setattr(os, "getloadavg", lambda: (1.9, 9.0, 9.0))
    assert how_busy() == ""


@pytest.mark.slow
def test_one_worker_then_several_at_once_are_measured_and_it_prints_what_to_type(
    tiny_model: Path, tmp_path: Path
) -> None:
    words = ["embed", "calibrate", tiny_model, "--seconds", "1", "--workers", "2"]
    run = fsqueue(*words, "--json", deadline_s=120)
    assert run.returncode == 0, run.stderr
    facts = json.loads(run.stdout)
    assert len(facts["several"]) == 2
    assert all(each["seconds"] >= 1 and each["cost"] > 0 for each in facts["several"])
    rates = [each["cost"] / each["seconds"] for each in (facts["one"], *facts["several"])]
    assert facts["gain"] == pytest.approx(sum(rates[1:]) / rates[0])
    assert facts["type"] == f"fsqueue run POOL --workers {facts['best_workers']}"
    run = fsqueue(*words, deadline_s=120)
    lines = run.stdout.splitlines()
    assert " on cpu: " in lines[0]
    assert lines[1].startswith("2 workers at once: ")
    typed = [shlex.split(line) for line in lines if line.startswith("  fsqueue ")]
    (tmp_path / "x.faa").write_text(">a\nMKV\n")
    paths = {"POOL": str(tmp_path / "pool"), "INPUT...": str(tmp_path / "x.faa")}
    for command in typed:
        done = fsqueue(*(paths.get(word, word) for word in command[1:]), deadline_s=120)
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_processes_that_die_beside_each_other_are_reported_and_leave_nothing(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the kernel ends them where memory runs out."""
    killed = tmp_path / "sitecustomize.py"
    killed.write_text(
        "import os, signal, sys\n"
        "if os.environ.get('DIE') and '--multiprocessing-fork' in sys.argv:\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    env = {"PYTHONPATH": str(tmp_path), "DIE": "1"}
    run = fsqueue("embed", "calibrate", tiny_model, "--workers", "2", env=env, deadline_s=120)
    assert run.returncode == 4, run.stderr
    assert "ended (exit status -9)" in run.stderr and "Try fewer --workers" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.slow
def test_any_encoder_can_be_measured(tmp_path: Path) -> None:
    model = write_model(tmp_path / "bert", "bert")
    run = fsqueue("embed", "calibrate", model, "--seconds", "1", "--json")
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["weight"] > 0


@pytest.mark.slow
def test_a_missing_model_is_reported_in_one_line(tmp_path: Path) -> None:
    run = fsqueue("embed", "calibrate", tmp_path / "none")
    assert run.returncode == 2
    assert (
        len(run.stderr.strip().splitlines()) == 1
        and "is neither a folder nor a hub id" in run.stderr
    )
