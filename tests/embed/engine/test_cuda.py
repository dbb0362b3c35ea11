"""What a card cannot do is found out before a claim runs: capabilities, code, kernels, numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from embed.engine import kernel_check
from embed.engine.cuda import Cuda, refuse_emulation, refuse_missing_code
from embed.engine.kernel_check import check_kernels
from embed.models.packed.kernels import Kernel, kernel_for
from fsqueue import NodeTrouble, NotSupportedError, usable_gib
from tests.support import flash
from tests.support.simulated_device import SimulatedDevice

CPU = torch.device("cpu")
INDEX = "sm_75 sm_80 sm_86 sm_90 sm_100 sm_120".split()
HALF = (torch.bfloat16, torch.float16)


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)])
def test_machine_code_serves_newer_cards_of_its_generation(capability: tuple[int, int]) -> None:
    refuse_missing_code("a card", capability, INDEX)


@pytest.mark.parametrize("capability", [(6, 1), (7, 0), (11, 0), (13, 0)])
def test_a_card_that_pytorch_was_not_built_for_is_named_with_what_to_install(
    capability: tuple[int, int],
) -> None:
    with pytest.raises(NotSupportedError, match=r"no code for this GPU, the V100 \(sm_.*Install"):
        refuse_missing_code("V100", capability, INDEX)


def test_intermediate_code_serves_every_newer_card() -> None:
    refuse_missing_code("a card", (13, 0), [*INDEX, "compute_120"])
    with pytest.raises(NotSupportedError):
        refuse_missing_code("a card", (7, 0), [*INDEX, "compute_120"])


def test_unknown_names_of_architectures_refuse_nothing() -> None:
    refuse_missing_code("an AMD card", (9, 0), ["gfx90a", "gfx942"])
    refuse_missing_code("a card", (7, 0), [])
    refuse_missing_code("a card", (9, 0), ["sm_90a"])


@pytest.mark.parametrize(
    ("capability", "dtype", "instead"),
    [
        ((7, 5), "bfloat16", "--dtype float16"),
        ((7, 0), "bfloat16", "--dtype float16"),
        ((6, 1), "bfloat16", "--dtype float32"),
        ((6, 1), "float16", "--dtype float32"),
    ],
)
def test_an_emulated_precision_is_refused_with_what_to_plan(
    capability: tuple[int, int], dtype: str, instead: str
) -> None:
    with pytest.raises(NotSupportedError, match=f"only emulates {dtype}.*{instead}"):
        refuse_emulation("a card", capability, dtype)


@pytest.mark.parametrize("capability", [(6, 1), (7, 0), (7, 5), (8, 0), (9, 0), None])
@pytest.mark.parametrize("dtype", ["float32", "tf32"])
def test_float32_works_everywhere(capability: tuple[int, int] | None, dtype: str) -> None:
    """tf32 too: a card without it computes in float32, which is more exact."""
    refuse_emulation("a card", capability, dtype)


# ---- kernels ----


@pytest.mark.parametrize(
    ("capability", "dtypes", "bias", "kernel"),
    [
        (None, (torch.float32, *HALF), False, Kernel.RUNS),
        ((8, 0), HALF, False, Kernel.VARLEN),
        ((9, 0), HALF, False, Kernel.VARLEN),
        ((12, 0), HALF, False, Kernel.VARLEN),
        ((9, 0), HALF, True, Kernel.PADDED),
        ((9, 0), (torch.float32,), False, Kernel.PADDED),
        ((7, 5), (torch.float16, torch.float32), False, Kernel.PADDED),
        ((7, 0), (torch.float16,), True, Kernel.PADDED),
    ],
)
def test_the_kernel_follows_from_card_precision_and_bias(
    capability: tuple[int, int] | None,
    dtypes: tuple[torch.dtype, ...],
    bias: bool,
    kernel: Kernel,
) -> None:
    for dtype in dtypes:
        assert kernel_for(capability, dtype, 64, bias=bias) is kernel


def test_heads_that_no_kernel_of_a_gpu_takes_are_refused_and_run_on_a_cpu() -> None:
    with pytest.raises(NotSupportedError, match="heads of 20 numbers"):
        kernel_for((9, 0), torch.float16, 20, bias=False)
    assert kernel_for(None, torch.float16, 20, bias=False) is Kernel.RUNS


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("capability", [(7, 5), (9, 0)])
def test_the_probe_passes_where_the_numbers_are_right(
    capability: tuple[int, int], dtype: str
) -> None:
    flash.emulate()
    check_kernels(CPU, capability, dtype)


@pytest.mark.parametrize("name", ["varlen", "biased_attention"])
def test_a_card_that_computes_wrongly_is_noticed(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    flash.emulate()
    real = getattr(kernel_check, name)
    monkeypatch.setattr(kernel_check, name, lambda *given: real(*given) + 0.1)
    with pytest.raises(NodeTrouble, match="computes wrong results: attention"):
        check_kernels(CPU, (9, 0), "float16")


def test_a_kernel_that_does_not_run_is_an_error_and_not_another_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def absent(*_given: object) -> None:
        raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")

    monkeypatch.setattr(kernel_check, "varlen", absent)
    with pytest.raises(RuntimeError, match="Ampere"):
        check_kernels(CPU, (9, 0), "float16")


# ---- a part of the card ----

GIB = 1 << 30


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What PyTorch would say of a card of 24 GiB, of which others hold 6; and what it is told."""
    facts = {"free": 18 * GIB, "total": 24 * GIB, "allocated": 0, "reserved": 0, "peak": 0}
    told = {"fraction": 1.0}
    answers = {
        "get_device_capability": lambda place: (8, 6),
        "mem_get_info": lambda place: (facts["free"], facts["total"]),
        "memory_allocated": lambda place: facts["allocated"],
        "memory_reserved": lambda place: facts["reserved"],
        "max_memory_allocated": lambda place: facts["peak"],
        "reset_peak_memory_stats": lambda place: None,
        "set_per_process_memory_fraction": lambda share, place: told.update(fraction=share),
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    monkeypatch.delenv("FSQUEUE_PER_GPU", raising=False)
    return {"facts": facts, "told": told}


def test_a_worker_alone_on_a_card_has_what_its_neighbours_leave(card: dict[str, Any]) -> None:
    device = Cuda()
    card["facts"].update(allocated=2 * GIB, reserved=5 * GIB, peak=12 * GIB)
    assert card["told"] == {"fraction": 1.0}
    assert device.free_bytes() == 21 * GIB
    assert device.used_share() == 0.5


def test_one_of_two_workers_keeps_to_its_part_of_the_card(
    card: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FSQUEUE_PER_GPU", "2")
    device = Cuda()
    part = int(usable_gib(24.0, 2) * GIB)
    assert card["told"]["fraction"] == pytest.approx(part / (24 * GIB))
    assert device.free_bytes() == part, "no more, although 18 GiB are free"
    card["facts"].update(allocated=2 * GIB, reserved=5 * GIB, peak=part // 2)
    assert device.free_bytes() == part - 2 * GIB
    assert device.used_share() == pytest.approx(0.5), "so its batches grow to its part, not beyond"
    card["facts"].update(free=1 * GIB, allocated=5 * GIB)
    assert device.free_bytes() == 1 * GIB, "its neighbour has taken more than its part"


def test_a_model_that_does_not_fit_into_a_part_is_refused_with_what_to_type(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from embed.engine.model_cache import ModelCache
    from embed.handlers.embed import Embed
    from embed.options import OPTIONS

    monkeypatch.setenv("FSQUEUE_PER_GPU", "2")
    handler = Embed()
    options = {option.name: option.default for option in OPTIONS} | {"model": str(tiny_model)}
    options = handler.prepare(options)

    def load(*given: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("embed.models.families.load", load)
    with pytest.raises(NotSupportedError, match=r"part of the GPU's memory, which 2 .*--per-gpu"):
        ModelCache(SimulatedDevice(), pytest.fail).get(options, "esm2", None)
