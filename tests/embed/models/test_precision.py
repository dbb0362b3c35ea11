"""`--dtype auto` takes the fastest precision that all GPUs of a plan have, and says which."""

from __future__ import annotations

from pathlib import Path

import pytest

import embed
from embed.models.precision import choose
from fsqueue import PlannedGpu
from fsqueue.gpu.capability import CAPABILITIES, planned_gpu
from fsqueue.gpu.weights import GPU_WEIGHTS
from tests.support.processes import fsqueue


@pytest.mark.parametrize(
    ("models", "dtype", "why"),
    [
        (["H100", "NVIDIA GeForce RTX 3090"], "bfloat16", "fast on H100, RTX 3090"),
        (["H100", "Tesla T4"], "float16", "T4 has no bfloat16"),
        (["V100-32GB"], "float16", "V100 32GB has no bfloat16"),
        (["P100", "H100"], "float32", "P100 is not faster"),
        (["H100", "cpu"], "float32", "CPUs are among the workers"),
        (["NVIDIA Thor", "H100"], "float32", "not known what Thor can do"),
        (["NVIDIA A100-SXM4-40GB MIG 1g.5gb"], "bfloat16", "A100"),
        ([], "float32", "not known"),
    ],
)
def test_the_precision_is_one_that_every_gpu_of_the_plan_has(
    models: list[str], dtype: str, why: str
) -> None:
    chosen = choose([planned_gpu(model) for model in models])
    assert chosen[0] == dtype and why in chosen[1]


def test_the_capability_of_every_gpu_with_a_weight_is_known() -> None:
    assert GPU_WEIGHTS.keys() - CAPABILITIES.keys() == {"cpu"}
    assert CAPABILITIES.keys() <= GPU_WEIGHTS.keys()


def test_a_person_spells_a_gpu_as_a_driver_or_shorter() -> None:
    assert planned_gpu("4090") == PlannedGpu("RTX 4090", (8, 9), 24.0)
    assert planned_gpu("NVIDIA H200", 139.8).memory_gib == 139.8


def test_a_plan_says_which_precision_it_has_and_why(tiny_model: Path, tmp_path: Path) -> None:
    fasta = tmp_path / "a.faa"
    fasta.write_text(">p\nMKV\n")
    plan = ["plan", "embed", tmp_path / "pool", fasta, "--model", tiny_model, "--dtype", "auto"]
    shown = fsqueue(*plan, "--gpus", "h100,t4", "--dry-run").stderr
    assert "dtype: float16 (auto: T4 has no bfloat16; --dtype float32 is exact)" in shown
    assert fsqueue(*plan, "--gpus", "h100").returncode == 0
    (claim,) = (tmp_path / "pool" / "spools").glob("*/*-bf16.*")
    again = fsqueue(*plan)
    assert "1 input planned before" in again.stdout, "by the pool's own spools"


def test_without_a_plan_it_is_this_machines(tiny_model: Path, tmp_path: Path) -> None:
    fasta = tmp_path / "a.faa"
    fasta.write_text(">p\nMKV\n")
    output = tmp_path / "a.safetensors"
    made = fsqueue("embed", "file", fasta, "-o", output, "--model", tiny_model, "--dtype", "auto")
    assert made.returncode == 0, made.stderr
    assert embed.read(output).metadata["dtype"] == "float32"


def test_a_cpu_computes_a_plan_of_tf32_in_float32_and_says_so(
    tiny_model: Path, tmp_path: Path
) -> None:
    fasta = tmp_path / "a.faa"
    fasta.write_text(">p\nMKV\n>q\nMKVGAW\n")
    tables = {}
    for dtype in ("tf32", "float32"):
        pool = tmp_path / dtype
        plan = ["plan", "embed", pool, fasta, "--model", tiny_model, "--dtype", dtype]
        assert fsqueue(*plan, "--gpus", "cpu").returncode == 0
        work = fsqueue("work", pool)
        assert work.returncode == 0 and ("has no TF32" in work.stderr) == (dtype == "tf32")
        (output,) = (pool / "outputs").glob("*.safetensors")
        tables[dtype] = embed.read(output)
    assert (tables["tf32"].rows == tables["float32"].rows).all()
    assert tables["tf32"].metadata["dtype"] == "tf32"
