#!/usr/bin/env python3
"""Compare packed batches with padded buckets, for models of transformers: CPU seconds, one thread.

    scripts/bench/packed.py                      every shape, in float32 and bfloat16
    scripts/bench/packed.py --shapes bert-base --rounds 9 --dtypes float32

Random weights in published shapes; lengths of passages (log-normal, median 60 tokens) or proteins
(median 280). Both run the same batches of at most 4,096 tokens, in turns; of each the best round
counts.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from embed.models.generic.network import GenericEncoder
from embed.models.packed.kernels import Kernel
from embed.models.packed.products import DTYPES

TOKENS = 4096
SHAPES: dict[str, tuple[Callable[[], Any], int]] = {
    "minilm-l6": (lambda: hf.BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536), 60),
    "bert-base": (lambda: hf.BertConfig(), 60),
    "xlm-roberta-base": (lambda: hf.XLMRobertaConfig(
        vocab_size=30000, max_position_embeddings=514), 60),
    "modernbert-base": (lambda: hf.ModernBertConfig(), 60),
    "qwen3-like": (lambda: hf.Qwen3Config(
        vocab_size=30000, hidden_size=512, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=4, head_dim=64, intermediate_size=1536), 60),
    "prot-t5-like": (lambda: hf.T5Config(
        vocab_size=128, d_model=512, d_ff=2048, num_layers=6, num_heads=8, d_kv=64), 280),
    "esm1-like": (lambda: hf.EsmConfig(
        vocab_size=33, pad_token_id=1, mask_token_id=32, hidden_size=384, num_hidden_layers=6,
        num_attention_heads=12, intermediate_size=1536, max_position_embeddings=1026,
        position_embedding_type="absolute"), 280),
}  # fmt: skip


def encoder(name: str, dtype: str) -> GenericEncoder:
    torch.manual_seed(7)
    config = SHAPES[name][0]()
    make = hf.T5EncoderModel if config.model_type == "t5" else hf.AutoModel.from_config
    model = make(config).to(DTYPES[dtype]).eval()
    frame = np.array([2]), np.array([3])
    config._attn_implementation = model.config._attn_implementation
    return GenericEncoder(model, config, frame, None)


def batch_of(median: int, rng: np.random.Generator) -> list[np.ndarray]:
    lengths: list[int] = []
    while sum(lengths) < TOKENS:
        lengths.append(int(min(max(rng.lognormal(np.log(median), 0.6), 4), 510)))
    return [rng.integers(5, 30, n) for n in sorted(lengths, reverse=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES))
    parser.add_argument("--dtypes", nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.shapes:
        for dtype in args.dtypes:
            one, rng = encoder(name, dtype), np.random.default_rng(7)
            batches = [batch_of(SHAPES[name][1], rng) for _ in range(2)]
            if not one.packs(Kernel.RUNS):
                print(f"{name:18} {dtype:9} cannot be packed", flush=True)
                continue
            best = dict.fromkeys((Kernel.RUNS, Kernel.PADDED), float("inf"))
            ratios = []
            for _ in range(args.rounds):
                took = {}
                for kernel in best:
                    begun = time.process_time()
                    for batch in batches:
                        one.hidden(batch, kernel=kernel)
                    took[kernel] = time.process_time() - begun
                    best[kernel] = min(best[kernel], took[kernel])
                ratios.append(took[Kernel.PADDED] / took[Kernel.RUNS])
            tokens = sum(len(each) + 2 for batch in batches for each in batch)
            rates = "  ".join(f"{k}: {tokens / best[k]:8,.0f} tokens/s" for k in best)
            ratio = best[Kernel.PADDED] / best[Kernel.RUNS]
            print(
                f"{name:18} {dtype:9} {rates}  packed is {ratio:.2f} times as fast "
                f"(rounds {min(ratios):.2f}-{max(ratios):.2f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
