"""Calibration measures, prints a line to type, and changes nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from embed.handlers.calibrate import Calibration
from embed.models.cost import PER_SECOND
from tests.support.generic_models import write_model
from tests.support.processes import fsqueue


def made(cost: float, seconds: float = 10.0) -> Calibration:
    return Calibration("m", "float32", "cpu", seconds, 1.0, 10, 2000, int(cost))


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
