"""DNABERT-2 and DNABERT-S: load the published weights and run them on packed batches.

The architecture, as published: word and type embeddings, summed and normalised, no table of
positions; then layers of attention and a gated feed-forward block, each followed (not preceded) by
its normalisation. Position enters as a bias on the attention's scores, -slope * |i - j|, with a
slope of its own for every head. Nothing of it is in transformers: its stock BertModel takes such a
checkpoint without an error, and leaves every layer as it was initialised at random. So a
checkpoint must have exactly the tensors that `dnabert_shape.py` names.

Sequences of a batch lie end to end, without padding; attention runs once for every run of equal
lengths. One of the doors to torch. What this module does not know: bases, tokenizers, claims, and
what becomes of the hidden states.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from itertools import groupby
from pickle import UnpicklingError
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from embed.dnabert_shape import Shape
from fsqueue import ClaimImpossible

BEGIN, END = 1, 2
"""[CLS] and [SEP] of every published checkpoint's tokenizer."""
HEADS_ONLY: Final = ("cls.", "pooler.")
"""What these checkpoints hold besides the encoder: heads for training, which embed nothing."""
BIAS_MAX: Final = 1 << 26
"""Numbers in one bias, 256 MiB: 12 heads over 2,364 tokens, which is 11 kb of DNA. What is longer
attends in portions of its tokens."""

Weights = dict[str, torch.Tensor]


def load(folder: str, dtype: str, device: torch.device) -> Encoder:
    """Load the model in `folder`. Raises ClaimImpossible unless its tensors are exactly those of
    the architecture: none missing, none of another shape, none left over."""
    shape = Shape.read(folder)
    weights = encoder_weights(_read(folder), shape, folder)
    kind = getattr(torch, dtype)
    return Encoder(shape, {name: weight.to(device, kind) for name, weight in weights.items()})


def encoder_weights(found: Weights, shape: Shape, folder: str) -> Weights:
    """Return the encoder's tensors by their published names, checked against the architecture.

    Checkpoints for masked language modelling say `bert.` before every name, and hold a head.
    """
    named = {name.removeprefix("bert."): tensor for name, tensor in found.items()}
    named = {name: tensor for name, tensor in named.items() if not name.startswith(HEADS_ONLY)}
    expected = shape.tensors()
    missing = [name for name in expected if name not in named]
    strange = [name for name in named if name not in expected]
    wrong = [
        name for name in expected if name in named and tuple(named[name].shape) != expected[name]
    ]
    for names, what in ((missing, "missing"), (strange, "unknown"), (wrong, "of another shape")):
        if names:
            raise ClaimImpossible(
                f"{folder}: {len(names)} tensors of its checkpoint are {what}, {names[0]} first; "
                f"it is incomplete, or of another architecture than DNABERT-2. Fetch it again."
            )
    return {name: named[name] for name in expected}


def _read(folder: str) -> Weights:
    """Read safetensors, or what the publisher ships instead: a pickle, of which only tensors are
    ever unpickled."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = f"{folder}/model.safetensors"
    if not os.path.exists(path):
        path = f"{folder}/pytorch_model.bin"
    try:
        if path.endswith(".safetensors"):
            return load_file(path)
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError, ValueError, EOFError, UnpicklingError, SafetensorError) as error:
        raise ClaimImpossible(
            f"{path}: cannot be read as a checkpoint of tensors ({type(error).__name__}); it is "
            f"missing, cut short, or holds other objects, which are never run. Fetch it again."
        ) from error


class Encoder:
    """A loaded DNABERT."""

    def __init__(self, shape: Shape, weights: Weights) -> None:
        self.shape = shape
        self.width = shape.width
        self._weights = weights
        word = weights["embeddings.word_embeddings.weight"]
        self.device = word.device
        # On a GPU the fused kernels want the bias in the query's type; on a CPU they take float32,
        # which is more exact at no cost.
        self._bias_type = torch.float32 if self.device.type == "cpu" else word.dtype
        self._slopes = torch.tensor(slopes(shape.heads), device=self.device)[:, None, None]
        self._bias = torch.empty(shape.heads, 0, 0)

    def hidden(self, sequences: Sequence[NDArray[np.uint16]]) -> list[torch.Tensor]:
        """Return the last layer's states of each sequence of token ids, (ids + 2, width) each.

        The first and last row belong to [CLS] and [SEP], which are added here.
        """
        lengths = [len(ids) + 2 for ids in sequences]
        packed = np.empty(sum(lengths), np.int64)
        start = 0
        for ids, length in zip(sequences, lengths, strict=True):
            packed[start], packed[start + length - 1] = BEGIN, END
            packed[start + 1 : start + length - 1] = ids
            start += length
        with torch.inference_mode():
            x = self._embedded(torch.from_numpy(packed).to(self.device))
            runs = list(_runs(lengths))
            for layer in range(self.shape.layers):
                x = self._layer(x, f"encoder.layer.{layer}", runs)
            return list(x.split(lengths))

    def _embedded(self, tokens: torch.Tensor) -> torch.Tensor:
        x = F.embedding(tokens, self._weights["embeddings.word_embeddings.weight"])
        x = x + self._weights["embeddings.token_type_embeddings.weight"][0]
        return self._norm(x, "embeddings.LayerNorm")

    def _layer(self, x: torch.Tensor, at: str, runs: list[tuple[int, int, int]]) -> torch.Tensor:
        attended = self._attend(self._linear(x, f"{at}.attention.self.Wqkv"), runs)
        attended = self._linear(attended, f"{at}.attention.output.dense")
        x = self._norm(attended + x, f"{at}.attention.output.LayerNorm")
        gate, up = F.linear(x, self._weights[f"{at}.mlp.gated_layers.weight"]).chunk(2, -1)
        y = self._linear(F.gelu(gate) * up, f"{at}.mlp.wo")
        return self._norm(y + x, f"{at}.mlp.layernorm")

    def _linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return F.layer_norm(x, (self.width,), weight, bias, self.shape.epsilon)

    def _attend(self, qkv: torch.Tensor, runs: list[tuple[int, int, int]]) -> torch.Tensor:
        """Attend inside each sequence: (tokens, 3 * width) to (tokens, width)."""
        output = qkv.new_empty(len(qkv), self.width)
        for start, count, length in runs:
            stop = start + count * length
            parts = qkv[start:stop].view(count, length, 3, self.shape.heads, -1)
            q, k, v = parts.permute(2, 0, 3, 1, 4)  # (count, heads, length, d) each
            for first, last, bias in self._biases(length):
                attended = F.scaled_dot_product_attention(q[:, :, first:last], k, v, attn_mask=bias)
                rows = output[start:stop].view(count, length, -1)[:, first:last]
                rows.copy_(attended.transpose(1, 2).flatten(2))
        return output

    def _biases(self, length: int) -> Iterator[tuple[int, int, torch.Tensor]]:
        """Yield the bias of a sequence of this length, (1, heads, tokens, length), in as many
        portions of its tokens as BIAS_MAX asks for. One that is whole serves shorter ones too."""
        if self.shape.heads * length * length <= BIAS_MAX:
            if self._bias.shape[1] < length:
                size = -(-length // 64) * 64  # kernels want aligned rows
                self._bias = self._portion(0, size, size)
            yield 0, length, self._bias[None, :, :length, :length]
            return
        step = max(1, BIAS_MAX // (self.shape.heads * length))
        for first in range(0, length, step):
            last = min(first + step, length)
            yield first, last, self._portion(first, last, -(-length // 64) * 64)[None, ..., :length]

    def _portion(self, first: int, last: int, length: int) -> torch.Tensor:
        """Return -slope * |i - j| for tokens i in [first, last) and j in [0, length)."""
        i = torch.arange(first, last, device=self.device)[:, None]
        j = torch.arange(length, device=self.device)
        return (-self._slopes * (i - j).abs()).to(self._bias_type)


def slopes(heads: int) -> list[float]:
    """Return the slope of each head's bias.

    For 8 heads 1/2, 1/4 ... 1/256; for another power of two the same way to 2**-8. In between: all
    of the lower power's, then every other one of the higher power's. 12 heads: 8 and 4.
    """
    lower = 1 << int(math.log2(heads))
    series = [2.0 ** (-8.0 * (n + 1) / lower) for n in range(lower)]
    return series if heads == lower else series + slopes(2 * lower)[::2][: heads - lower]


def _runs(lengths: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Yield (start, sequences, length) for every run of sequences of equal length."""
    start = 0
    for length, equal in groupby(lengths):
        count = len(list(equal))
        yield start, count, length
        start += count * length
