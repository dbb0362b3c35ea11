#!/usr/bin/env python3
"""Measure what a batch costs the host of a GPU: preparing it, and asking for its kernels.

    scripts/bench/host_time.py                      8M, 650M and DNABERT-S, 65,536 tokens a batch
    scripts/bench/host_time.py --tokens 4096
    scripts/bench/host_time.py --old ~/before       the same of a checkout of 2478551, beside it

Needs no GPU. `prepare` is real: this many tokens, as they go up. `ask` is the model's own forward
pass and pooling, with as many layers but hardly any numbers, so that kernels take next to no time;
attention, whose kernel a CPU lacks, does nothing. A real launch adds 3 to 5 us to each kernel.
The old engine also gathered its rotations and copied the bounds in every layer; that is `prepare`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROUNDS = 15
LAYERS = {"8M": 6, "650M": 33, "DNABERT-S": 12}
HEAD = {"8M": 16, "650M": 64, "DNABERT-S": 64}
GOALS_MS = {"8M": 6.0, "650M": 20.0}
WIDTH, HEADS = 32, 4


def best_ms(action: Callable[[], Any]) -> float:
    """Return the least time of several runs."""
    found = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        action()
        found.append(time.perf_counter() - begun)
    return 1e3 * min(found)


def sequences_of(tokens: int, *, dna: bool) -> list[Any]:
    """Return sequences of ids as a sorted batch of proteins or genes has them."""
    rng = np.random.default_rng(2)
    lengths: list[int] = []
    while sum(lengths) + 2 * len(lengths) < tokens:
        lengths.append(int(rng.integers(290, 330)))
    lengths.sort(reverse=True)
    ids = [rng.integers(5, 24, n) for n in lengths]
    return (
        [each.astype(np.uint16) for each in ids] if dna else [bytes(each.tolist()) for each in ids]
    )


def tiny_esm2(layers: int) -> Any:
    from transformers import EsmConfig, EsmModel

    config = EsmConfig(
        vocab_size=33, mask_token_id=32, pad_token_id=1, hidden_size=WIDTH,
        num_hidden_layers=layers, num_attention_heads=HEADS, intermediate_size=2 * WIDTH,
        position_embedding_type="rotary", token_dropout=True, emb_layer_norm_before=False,
    )  # fmt: skip
    from embed.models.esm2.network import Esm2Encoder

    return Esm2Encoder(EsmModel(config, add_pooling_layer=False).bfloat16().eval())


def tiny_dnabert(layers: int) -> Any:
    from embed.models.dnabert.network import DnabertEncoder
    from embed.models.dnabert.shape import DnabertShape

    shape = DnabertShape(4096, WIDTH, layers, HEADS, 2 * WIDTH, 2, 1e-12)
    weights = {name: torch.randn(size).bfloat16() for name, size in shape.tensors().items()}
    return DnabertEncoder(shape, weights)


def measure_new(name: str, tokens: int) -> tuple[float, float]:
    """Return the milliseconds of preparing a batch, and of asking for its kernels."""
    from embed.models.conventions import pooling
    from embed.models.conventions.convention import Convention
    from embed.models.conventions.pooling import Pooler
    from embed.models.dnabert import network
    from embed.models.packed import attention, products
    from embed.models.packed.kernels import Kernel
    from embed.models.packed.layout import Layout
    from embed.models.packed.pack import Pack
    from embed.models.packed.states import States

    products._has_onednn = lambda _weight: False  # as on a GPU

    is_dna = name == "DNABERT-S"
    encoder = (tiny_dnabert if is_dna else tiny_esm2)(LAYERS[name])
    kernel = Kernel.PADDED if is_dna else Kernel.VARLEN
    batch = sequences_of(tokens, dna=is_dna)
    buffer = torch.empty(8 * tokens, dtype=torch.uint8)

    def prepare() -> None:
        layout = Layout([len(ids) for ids in batch], encoder.frame, kernel)
        layout.write(batch, buffer.numpy())

    attention.varlen = lambda q, _k, _v, _bounds, _longest: torch.empty_like(q)
    for user in (attention, network):
        user.biased_attention = lambda q, _k, v, *_: torch.empty_like(v)
    pooling.reduce = pooling.reduce_segments  # as on a GPU
    small = [ids[:6] for ids in batch[:3]]
    layout = Layout([len(ids) for ids in small], encoder.frame, kernel)
    data = np.empty(layout.bytes, np.uint8)
    layout.write(small, data)
    pooler = Pooler(Convention())

    def ask() -> None:
        with torch.inference_mode():
            pack = Pack.read(torch.from_numpy(data).clone(), layout)
            pooler(States(encoder.states(pack), pack.bounds)).clone()

    return best_ms(prepare), best_ms(ask)


def measure_old(name: str, tokens: int) -> tuple[float, float]:
    """Do the same with the engine of before there were launches."""
    from embed.models import packed, pooling
    from embed.models.packed import Pack

    packed._has_onednn = lambda _weight: False  # as on a GPU
    is_dna = name == "DNABERT-S"
    encoder = (tiny_dnabert if is_dna else tiny_esm2)(LAYERS[name])
    batch = sequences_of(tokens, dna=is_dna)
    arrays = batch if is_dna else [np.frombuffer(ids, np.uint8) for ids in batch]
    if not is_dna:
        encoder.inv_freq = torch.rand(HEAD[name] // 2)

    def prepare() -> None:
        pack = Pack.of(arrays, 0, 2, torch.device("cpu"))
        if not is_dna:
            encoder._rotations(pack)
            for _ in range(LAYERS[name]):
                pack.bounds()

    lengths = len({len(ids) for ids in batch})
    # DNABERT attended once for every length, in every layer.
    small = [ids[: 1 + n] if is_dna else ids[:6] for n, ids in enumerate(batch[:lengths])]
    states = [torch.zeros(4, WIDTH) for _ in batch]
    pool = pooling.mean_of_all if is_dna else pooling.mean
    packed._varlen = lambda _q: lambda q, *_: torch.empty_like(q)
    packed.scores_dtype = lambda values: values.dtype
    encoder_to_ask = (tiny_dnabert if is_dna else tiny_esm2)(LAYERS[name])

    def ask() -> None:
        encoder_to_ask.hidden(small if is_dna else small[:3])
        with torch.inference_mode():
            torch.cat([pool(each).view(-1, WIDTH) for each in states]).numpy()

    return best_ms(prepare), best_ms(ask)


def measure(tokens: int) -> dict[str, tuple[float, float]]:
    """Return what this interpreter's `embed` takes, by model."""
    torch.set_num_threads(1)
    is_new = find_spec("embed.engine.device") is not None
    return {name: (measure_new if is_new else measure_old)(name, tokens) for name in LAYERS}


def run(root: Path, tokens: int) -> dict[str, tuple[float, float]]:
    """Measure a checkout in a process of its own."""
    command = [sys.executable, __file__, "--tokens", str(tokens), "--root", str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=65_536)
    parser.add_argument("--old", type=Path, help="another checkout")
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.root:
        sys.path.insert(0, str(given.root))
        print(json.dumps(measure(given.tokens)))
        return
    here = Path(__file__).resolve().parents[2]
    columns = {"now": run(here, given.tokens)}
    if given.old:
        columns["old"] = run(given.old.expanduser().resolve(), given.tokens)
    print(f"host time of a batch of {given.tokens:,} tokens, ms, one thread")
    print(f"{'':12}{'':6}{'prepare':>9}{'ask':>8}{'both':>8}   at most, tokens/s")
    for name in LAYERS:
        for column, found in columns.items():
            prepare, ask = found[name]
            both = prepare + ask
            goal = (
                f"   goal {GOALS_MS[name]:.0f} ms" if name in GOALS_MS and column == "now" else ""
            )
            print(f"{name:12}{column:6}{prepare:9.2f}{ask:8.2f}{both:8.2f}   "
                  f"{1e3 * given.tokens / both:,.0f}{goal}")  # fmt: skip


if __name__ == "__main__":
    main()
