"""Padded == packed == alone: every family, precision and attention kernel gives the same states.

The kernels of GPUs run here on the CPU: the padded one as it is, FlashAttention by a stand-in.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from embed.models import families
from embed.models.packed.encoder import PackedEncoder
from embed.models.packed.kernels import Kernel
from embed.models.packed.layout import RATIOS, SLACK, WASTE_MAX, Frame, Layout, bucket_edges
from embed.models.packed.pack import Pack
from tests.support import dnabert, flash, generic_models

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
LENGTHS = (90, 41, 40, 40, 12, 3, 3, 1)
TOLERANCE = {"float32": 1e-5, "bfloat16": 0.08, "float16": 0.008}
Load = Callable[[str, str], PackedEncoder]


@pytest.fixture(scope="module")
def load(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Load:
    root = tmp_path_factory.mktemp("kernels")
    dnabert.write_model(root / "dnabert")
    generic_models.write_model(root / "bert", "bert")
    generic_models.write_model(root / "t5", "t5")
    folders = {"esm2": tiny_model, "dnabert": root / "dnabert", "bert": root / "bert"}
    folders["t5"] = root / "t5"

    def loaded(family: str, dtype: str) -> PackedEncoder:
        name = family if family in families.FAMILIES else "auto"
        encoder: PackedEncoder = families.load(name, str(folders[family]), dtype, CPU)[0]
        return encoder

    return loaded


def sequences_for(encoder: PackedEncoder) -> list[Any]:
    rng = np.random.default_rng(4)
    top = min(24, encoder.frame.vocabulary)
    longest = (encoder.frame.positions or 100) - 2
    ids = [rng.integers(4, top, min(length, longest)) for length in LENGTHS]
    if encoder.frame.ids is np.uint8 and encoder.has_bias is False and encoder.head:
        return [bytes(each.tolist()) for each in ids]
    return ids


KERNELS = {
    "esm2": (Kernel.RUNS, Kernel.PADDED, Kernel.VARLEN),
    "dnabert": (Kernel.RUNS, Kernel.PADDED),
    "bert": (Kernel.PADDED,),
    "t5": (Kernel.PADDED,),
}
CASES = [
    (family, kernel, dtype)
    for family, kernels in KERNELS.items()
    for kernel in kernels
    for dtype in TOLERANCE
    if (kernel, dtype) != (Kernel.VARLEN, "float32")  # FlashAttention is for half precision
]


@pytest.mark.parametrize(("family", "kernel", "dtype"), CASES)
def test_a_sequence_has_the_same_states_in_company_as_alone_by_every_kernel(
    load: Load, family: str, kernel: Kernel, dtype: str
) -> None:
    flash.emulate()
    encoder, exact = load(family, dtype), load(family, "float32")
    sequences = sequences_for(encoder)
    alone = [exact.hidden([each]).rows for each in sequences]
    for order in (range(len(LENGTHS)), (4, 0, 7, 2, 1, 6, 3, 5)):
        together = encoder.hidden([sequences[n] for n in order], kernel=kernel).split()
        for n, found in zip(order, together, strict=True):
            apart = (found.float() - alone[n]).abs().max() / alone[n].abs().max()
            assert apart < TOLERANCE[dtype], (n, float(apart))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_attention_in_portions_is_the_same_by_the_padded_kernel(
    load: Load, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from embed.models.dnabert import network

    encoder = load("dnabert", dtype)
    sequences = sequences_for(encoder)
    whole = encoder.hidden(sequences, kernel=Kernel.PADDED).rows
    monkeypatch.setattr(network, "BIAS_MAX", 12 * 40 * 7)
    again = load("dnabert", dtype).hidden(sequences, kernel=Kernel.PADDED).rows
    assert torch.allclose(again.float(), whole.float(), atol=TOLERANCE[dtype])


# ---- buckets ----


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=300))
def test_buckets_have_all_sequences_and_little_padding(lengths: list[int]) -> None:
    sizes = np.sort(np.array(lengths))[::-1]
    edges = bucket_edges(sizes)
    assert [edges[0][0], edges[-1][1]] == [0, len(sizes)]
    assert all(one[1] == other[0] for one, other in pairwise(edges))
    padded = sum((last - first) * int(sizes[first]) for first, last in edges)
    assert padded <= (1 + WASTE_MAX) * sizes.sum()


def test_however_many_lengths_there_are_the_buckets_are_few() -> None:
    for top, most in ((1024, 20), (5000, 30)):
        assert len(bucket_edges(np.arange(top, 2, -1))) <= most
    rng = np.random.default_rng(1)
    like_proteins = np.sort(rng.lognormal(5.7, 0.6, 4000).clip(30, 1022).astype(int))[::-1]
    assert len(bucket_edges(like_proteins)) <= 16
    # Sorted groups of a claim, as launches get them.
    assert len(bucket_edges(like_proteins[1000:1200])) == 1
    assert SLACK < 64 and RATIOS[-1] * (1 + WASTE_MAX) == pytest.approx(1)


# ---- layout ----


@pytest.mark.parametrize("vocabulary", [33, 4096, 250_000])
@pytest.mark.parametrize("kernel", Kernel)
def test_what_goes_up_is_one_buffer_that_holds_ids_and_bounds(
    vocabulary: int, kernel: Kernel
) -> None:
    frame = Frame((7, 8), (9,), vocabulary)
    sequences = [np.arange(10, 10 + n) % vocabulary for n in (3, 12, 5)]
    layout = Layout([len(each) for each in sequences], frame, kernel)
    data = np.zeros(layout.bytes, np.uint8)
    layout.write(sequences, data)
    pack = Pack.read(torch.from_numpy(data), layout)
    assert pack.tokens.tolist() == [x for each in sequences for x in (7, 8, *each.tolist(), 9)]
    assert pack.bounds.tolist() == [0, 6, 21, 29]
    assert pack.positions.tolist() == [*range(6), *range(15), *range(8)]
    assert layout.bytes <= 4 * 6 * 4 + 29 * {33: 1, 4096: 2, 250_000: 4}[vocabulary]
    if pack.padding is None:
        return
    assert layout.slots == sum(each.count * each.length for each in layout.buckets) <= 45
    source = pack.padding.source
    assert source[:15].tolist() == list(range(6, 21)), "the longest is first"
    assert torch.equal(source.long()[pack.padding.slots_of(pack).long()], torch.arange(29))
    assert int((~pack.padding.is_padding).sum()) == 29
