"""What a card cannot do is found out before a claim runs: capabilities, code, kernels, numbers."""

from __future__ import annotations

import pytest
import torch

from embed.engine import cuda
from embed.engine.cuda import check_kernels, refuse_emulation, refuse_missing_code
from embed.models import packed
from embed.models.packed import Kernel, kernel_for
from fsqueue import NodeTrouble, NotSupportedError
from tests.support import flash

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
def test_float32_works_everywhere(capability: tuple[int, int] | None) -> None:
    refuse_emulation("a card", capability, "float32")


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
    real = getattr(packed, name)
    monkeypatch.setattr(cuda, name, lambda *given: real(*given) + 0.1)
    with pytest.raises(NodeTrouble, match="computes wrong results: attention"):
        check_kernels(CPU, (9, 0), "float16")


def test_a_kernel_that_does_not_run_is_an_error_and_not_another_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def absent(*_given: object) -> None:
        raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")

    monkeypatch.setattr(cuda, "varlen", absent)
    with pytest.raises(RuntimeError, match="Ampere"):
        check_kernels(CPU, (9, 0), "float16")
