"""Packed batches, with and without kernels that a machine may not have."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from embed.models.packed import products
from embed.models.packed.attention import attend
from embed.models.packed.layout import Frame
from embed.models.packed.pack import Pack
from embed.models.packed.products import linear

CPU = torch.device("cpu")
LENGTHS = (7, 7, 7, 5, 2, 2, 1)
FRAME = Frame((90,), (91,), 256)


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(5)


@pytest.fixture
def pack() -> Pack:
    return Pack.of([bytes(range(length)) for length in LENGTHS], FRAME, CPU)


def test_a_pack_puts_a_begin_and_an_end_around_every_sequence(pack: Pack) -> None:
    first = pack.tokens[:9].tolist()
    assert first == [90, 0, 1, 2, 3, 4, 5, 6, 91]
    assert pack.lengths == [9, 9, 9, 7, 4, 4, 3]
    assert pack.runs == [(0, 3, 9), (27, 1, 7), (34, 2, 4), (42, 1, 3)]
    assert pack.positions[25:30].tolist() == [7, 8, 0, 1, 2]
    assert pack.bounds.tolist() == [0, 9, 18, 27, 34, 38, 42, 45]


def test_attention_stays_inside_each_sequence(pack: Pack, rng: torch.Generator) -> None:
    q, k, v = torch.randn(3, 45, 4, 8, generator=rng).unbind()
    together = attend(q, k, v, pack)
    bounds = pack.bounds.tolist()
    for start, stop in zip(bounds, bounds[1:], strict=False):
        scores = torch.einsum("ihd,jhd->hij", q[start:stop], k[start:stop]) / 8**0.5
        alone = torch.einsum("hij,jhd->ihd", scores.softmax(-1), v[start:stop]).flatten(1)
        assert (together[start:stop] - alone).abs().max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gelu", [False, True])
def test_a_linear_map_is_the_plain_one_with_or_without_onednn(
    rng: torch.Generator, dtype: torch.dtype, gelu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, bias = torch.randn(48, 32, generator=rng), torch.randn(48, generator=rng)
    x = torch.randn(77, 32, generator=rng)
    exact = F.linear(*(part.to(dtype).double() for part in (x, weight, bias)))
    exact = F.gelu(exact) if gelu else exact

    def worst(mapped: Callable[[torch.Tensor], torch.Tensor]) -> float:
        return (mapped(x.to(dtype)).double() - exact).abs().max().item()

    tolerance = 1e-5 if dtype == torch.float32 else torch.finfo(dtype).eps * 32
    with torch.inference_mode():
        assert worst(linear(weight.to(dtype), bias.to(dtype), gelu=gelu)) < tolerance
        monkeypatch.setattr(products, "_has_onednn", lambda _weight: False)
        assert worst(linear(weight.to(dtype), bias.to(dtype), gelu=gelu)) < tolerance


def test_onednn_is_used_where_this_torch_has_it() -> None:
    expected = torch.backends.mkldnn.is_available()
    assert products._has_onednn(torch.zeros(4, 4)) is expected


def test_half_precision_attends_in_float32_on_a_cpu(pack: Pack, rng: torch.Generator) -> None:
    q, k, v = torch.randn(3, 45, 4, 8, generator=rng).unbind()
    half = attend(q, k, v.bfloat16(), pack)
    assert half.dtype == torch.bfloat16
    exact = attend(q, k, v.bfloat16().float(), pack)
    assert torch.equal(half, exact.bfloat16())
