"""What a GPU is asked to do for a batch: kernels, copies and waits, counted on fake tensors."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from embed.engine.batching import Tokenized
from embed.engine.engine import Engine
from embed.models.conventions.convention import Convention, Mode
from embed.models.conventions.pooling import Pooler
from embed.models.packed.encoder import PackedEncoder
from embed.models.packed.kernels import Kernel
from tests.support import fake_cuda
from tests.support.fake_cuda import FakeCuda, Record, lengths

TURING, AMPERE, HOPPER = (7, 5), (8, 0), (9, 0)
PER_LAYER_MAX = 18
MODES = (Mode.MEAN, Mode.MEAN_ALL, Mode.CLS, Mode.MAX, Mode.PER_TOKEN)

ESM = [
    (size, dtype, capability, Kernel.PADDED if dtype == "float32" or capability == TURING
     else Kernel.VARLEN)
    for size in ("8M", "650M")
    for dtype, capability in (("float32", HOPPER), ("float32", TURING), ("float16", TURING),
                              ("float16", AMPERE), ("bfloat16", AMPERE), ("bfloat16", HOPPER))
]  # fmt: skip


def sequences(count: int, longest: int, *, dna: bool = False) -> list[Tokenized]:
    """One bucket's worth of lengths, however many."""
    sizes = lengths(count, longest, int(0.9 * longest))
    return [Tokenized(n, np.zeros(size, np.int16) if dna else bytes(size))
            for n, size in enumerate(sizes)]  # fmt: skip


def record(engine: Engine, device: FakeCuda, batch: list[Tokenized]) -> Record:
    """What a second batch asks for: the first makes tables that are kept."""
    with fake_cuda.numbers(device):
        for _ in range(2):
            engine.embed(batch, pytest.fail)
    return device.records[-1]


def shown(found: Record) -> str:
    return str(Counter(found.kernels).most_common())


@pytest.mark.parametrize(("size", "dtype", "capability", "kernel"), ESM)
def test_esm2_asks_for_few_kernels_two_copies_and_no_wait(
    size: str, dtype: str, capability: tuple[int, int], kernel: Kernel
) -> None:
    device = FakeCuda(capability)
    encoder = fake_cuda.esm2(device, size, dtype)
    check(device, encoder, kernel, layers=fake_cuda.SIZES[size][0])


@pytest.mark.parametrize(
    ("dtype", "capability"), [("float32", HOPPER), ("float16", TURING), ("bfloat16", AMPERE)]
)
def test_dnabert_asks_for_few_kernels_two_copies_and_no_wait(
    dtype: str, capability: tuple[int, int]
) -> None:
    device = FakeCuda(capability)
    check(device, fake_cuda.dnabert(device, dtype), Kernel.PADDED, layers=12, dna=True)


def check(
    device: FakeCuda, encoder: PackedEncoder, kernel: Kernel, layers: int, *, dna: bool = False
) -> None:
    engine = Engine(encoder, Pooler(Convention((Mode.MEAN,))), device)
    assert engine.kernel is kernel
    few = record(engine, device, sequences(10, 300, dna=dna))
    many = record(engine, device, sequences(400, 300, dna=dna))
    per_layer = len(few.kernels) / layers
    inside = sum(count // layers for count in Counter(few.kernels).values())
    print(f"{device.name} {encoder.dtype} {kernel}: {inside} kernels a layer, {per_layer:.1f} with "
          f"all others")  # fmt: skip
    assert inside <= PER_LAYER_MAX, shown(few)
    assert few.kernels == many.kernels, "none of them belongs to a sequence"
    for found in (few, many):
        assert (found.up, found.down, found.waits) == (1, 1, []), shown(found)


@pytest.mark.parametrize("mode", MODES)
def test_no_way_of_pooling_waits_or_works_sequence_by_sequence(mode: Mode) -> None:
    device = FakeCuda(HOPPER)
    encoder = fake_cuda.esm2(device, "small", "bfloat16")
    engine = Engine(encoder, Pooler(Convention((mode,))), device)
    few = record(engine, device, sequences(10, 60))
    many = record(engine, device, sequences(400, 60))
    assert few.kernels == many.kernels
    assert (many.up, many.down, many.waits) == (1, 1, [])


def test_flash_attention_is_one_kernel_a_layer_and_padded_attention_one_a_bucket() -> None:
    for dtype, name in (("bfloat16", "_flash_attention_forward"),
                        ("float32", "_scaled_dot_product_efficient_attention")):  # fmt: skip
        device = FakeCuda(HOPPER)
        engine = Engine(fake_cuda.esm2(device, "small", dtype), Pooler(Convention()), device)
        found = record(engine, device, sequences(50, 200))
        assert found.kernels.count(name) == 2
        mixed = [Tokenized(n, bytes(size)) for n, size in enumerate((400, 380, 90, 88, 87))]
        found = record(engine, device, mixed)
        assert found.kernels.count(name) == (2 if dtype == "bfloat16" else 4)


def test_products_round_in_plans_of_tf32_and_in_no_other() -> None:
    """What is allowed is one setting of the process, which has models of both."""
    device = FakeCuda(HOPPER)
    encoder = fake_cuda.esm2(device, "small", "float32")
    engines = [Engine(encoder, Pooler(Convention()), device, tf32=tf32) for tf32 in (True, False)]
    allowed = []
    for engine in (*engines, *engines):
        record(engine, device, sequences(2, 50))
        allowed.append(torch.backends.cuda.matmul.allow_tf32)
    assert allowed == [True, False, True, False]
