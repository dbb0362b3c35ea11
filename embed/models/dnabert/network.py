"""DNABERT-2 and DNABERT-S: load the published weights and run them on packed batches.

The published architecture: word and type embeddings, summed and normalised, without position
embeddings; then layers of attention and a gated feed-forward block, each followed (not preceded) by
its normalisation. Position enters as ALiBi (Press et al., 2022): a bias on the attention's scores,
-slope * |i - j|, with another slope for every head. transformers does not have it: its stock
BertModel loads such a checkpoint without an error, and leaves every layer randomly initialised. So
a checkpoint must have exactly the tensors that `shape.py` lists.

Sequences of a batch lie end to end, without padding (`packed.py`). One of the doors to torch. What
this module does not know: bases, tokenizers, claims, and how the hidden states are used.
"""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from pickle import UnpicklingError
from typing import Final

import torch
from torch.nn import functional as F

from embed.models.conventions.convention import LAST, Layers
from embed.models.dnabert.shape import DnabertShape
from embed.models.packed.attention import bucketed, gathered
from embed.models.packed.encoder import PackedEncoder
from embed.models.packed.kernels import biased_attention, scores_dtype
from embed.models.packed.layout import Frame
from embed.models.packed.pack import Pack, Padding
from embed.models.packed.products import DTYPES, TensorMap, linear
from embed.models.packed.states import LayerStates
from embed.models.packed.streamed import (
    LayerMap,
    Place,
    Streamed,
    Weights,
    apply_in_turn,
    device_of,
    place_layer,
)
from fsqueue import ClaimImpossible

BEGIN, END = 1, 2
"""[CLS] and [SEP] of every published checkpoint's tokenizer."""
HEADS_ONLY: Final = ("cls.", "pooler.")
"""Tensors of these checkpoints that are not part of the encoder: heads for training."""
BIAS_MAX: Final = 1 << 26
"""Numbers in one bias, 256 MiB: 12 heads over 2,364 tokens, which is 11 kb of DNA. The tokens of
longer sequences attend in portions."""

HIDDEN: Final = -30_000.0
"""The key of a padded token: far below every score and bias, and in float16's range."""
HIDING: Final = 8
"""Numbers that hide the padding; kernels want a multiple of this."""


def load(folder: str, dtype: str, place: Place) -> DnabertEncoder:
    """Load the model in `folder`.

    Raises ClaimImpossible unless its tensors are exactly those of the architecture: none missing,
    none of another shape, none unknown.
    """
    shape = DnabertShape.read(folder)
    weights = encoder_weights(_read(folder), shape, folder)
    weights = {name: tensor.to(DTYPES[dtype]) for name, tensor in weights.items()}
    return DnabertEncoder(shape, weights, place)


def encoder_weights(
    found: dict[str, torch.Tensor], shape: DnabertShape, folder: str
) -> dict[str, torch.Tensor]:
    """Return the encoder's tensors by their published names, checked against the architecture.

    Checkpoints for masked language modelling prefix every name with `bert.`, and hold a head.
    """
    named = {name.removeprefix("bert."): tensor for name, tensor in found.items()}
    named = {name: tensor for name, tensor in named.items() if not name.startswith(HEADS_ONLY)}
    expected = shape.tensors()
    missing = [name for name in expected if name not in named]
    unknown = [name for name in named if name not in expected]
    wrong = [
        name for name in expected if name in named and tuple(named[name].shape) != expected[name]
    ]
    for names, what in ((missing, "missing"), (unknown, "unknown"), (wrong, "of another shape")):
        if names:
            raise ClaimImpossible(
                f"{folder}: tensors of its checkpoint are {what} ({len(names)}; the first is "
                f"{names[0]}); it is incomplete, or not a DNABERT-2. Fetch it again."
            )
    return {name: named[name] for name in expected}


def _read(folder: str) -> dict[str, torch.Tensor]:
    """Read safetensors, or the pickle that the publisher ships; only tensors are loaded from it."""
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
            f"missing, truncated, or holds other objects, which are never loaded. Fetch it again."
        ) from error


class DnabertEncoder(PackedEncoder):
    """A loaded DNABERT."""

    has_bias = True

    def __init__(self, shape: DnabertShape, weights: Weights, place: Place | None = None) -> None:
        """Take the tensors that `DnabertShape.tensors` names to their place, layer by layer."""
        self.shape = shape
        self.width = shape.width
        word = weights["embeddings.word_embeddings.weight"]
        place = place or word.device
        self.device, self.dtype = device_of(place), word.dtype
        self.head = shape.width // shape.heads
        self.frame = Frame((BEGIN,), (END,), shape.vocabulary)
        parts = _by_layer(weights)
        self._embed = place_layer(parts.pop("embeddings"), place, partial(_embedding, shape))
        self._layers = [
            place_layer(parts.pop(f"encoder.layer.{number}"), place, partial(_Layer, shape))
            for number in range(shape.layers)
        ]
        self._keeps_tables = not isinstance(place, Streamed)
        self._biases = self._new_biases()

    def _new_biases(self) -> _AlibiBiases:
        # The dtype that `scores_dtype` says of what is computed on the device.
        dtype = torch.float32 if self.device.type == "cpu" else self.dtype
        return _AlibiBiases(self.shape.heads, dtype, self.device)

    def states(self, pack: Pack, layers: Layers = LAST) -> torch.Tensor:
        """Return the chosen layers' states of every token of a pack, (tokens, width)."""
        return self.states_of([pack], layers)[0]

    def states_of(self, packs: Sequence[Pack], layers: Layers = LAST) -> list[torch.Tensor]:
        """Return the states of each pack; every layer is at its place once for all of them."""
        chosen = [LayerStates(layers) for _ in packs]
        biases = self._biases if self._keeps_tables else self._new_biases()
        states = [pack.tokens for pack in packs]
        apply_in_turn(self._embed, states, [()] * len(packs))
        for number, layer in enumerate(self._layers):
            for each, x in zip(chosen, states, strict=True):
                each.add(number, x)
            apply_in_turn(layer, states, [(pack, biases) for pack in packs])
        for each, x in zip(chosen, states, strict=True):
            each.add(len(self._layers), x)
        return [each.finish(x) for each, x in zip(chosen, states, strict=True)]


def _by_layer(weights: Weights) -> dict[str, dict[str, torch.Tensor]]:
    """Return the tensors of the embeddings and of each layer, by their names in it."""
    parts: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    for name, tensor in weights.items():
        words = name.split(".")
        count = 1 if words[0] == "embeddings" else 3
        parts[".".join(words[:count])][".".join(words[count:])] = tensor
    return parts


def _embedding(shape: DnabertShape, weights: Weights) -> LayerMap:
    # Every token is of type 0, so one table holds both embeddings.
    words = weights["word_embeddings.weight"] + weights["token_type_embeddings.weight"][0]
    norm = _norm(shape, weights, "LayerNorm")
    return lambda tokens: norm(F.embedding(tokens, words))


class _Layer:
    def __init__(self, shape: DnabertShape, weights: Weights) -> None:
        self._heads = shape.heads
        self._qkv = _linear(weights, "attention.self.Wqkv")
        self._out = _linear(weights, "attention.output.dense")
        self._attention_norm = _norm(shape, weights, "attention.output.LayerNorm")
        gate, up = weights["mlp.gated_layers.weight"].chunk(2)
        self._gate, self._up = linear(gate.contiguous(), gelu=True), linear(up.contiguous())
        self._down = _linear(weights, "mlp.wo")
        self._mlp_norm = _norm(shape, weights, "mlp.layernorm")

    def __call__(self, x: torch.Tensor, pack: Pack, biases: _AlibiBiases) -> torch.Tensor:
        x = self._attention_norm(self._out(self._attend(self._qkv(x), pack, biases)) + x)
        return self._mlp_norm(self._down(self._gate(x) * self._up(x)) + x)

    def _attend(self, qkv: torch.Tensor, pack: Pack, biases: _AlibiBiases) -> torch.Tensor:
        """Attend inside each sequence: (tokens, 3 * width) to (tokens, width)."""
        if pack.padding is not None:
            return self._attend_padded(pack.spread(qkv), pack, pack.padding, biases)
        wide = qkv.to(scores_dtype(qkv))
        output = qkv.new_empty(len(qkv), qkv.shape[1] // 3)
        for start, count, length in pack.runs:
            stop = start + count * length
            parts = wide[start:stop].view(count, length, 3, self._heads, -1)
            q, k, v = parts.permute(2, 0, 3, 1, 4)  # (count, heads, length, d) each
            rows = output[start:stop].view(count, length, -1)
            for first, last, bias in biases.of(length):
                attended = F.scaled_dot_product_attention(q[:, :, first:last], k, v, attn_mask=bias)
                rows[:, first:last] = attended.transpose(1, 2).flatten(2)
        return output

    def _attend_padded(
        self, qkv: torch.Tensor, pack: Pack, padding: Padding, biases: _AlibiBiases
    ) -> torch.Tensor:
        """Attend in buckets.

        The bias of a bucket is the same for all of its sequences, so it cannot hide the padding. A
        number more in every query and key does: their product is 0, or for padding large and
        negative.
        """
        qkv = qkv.unflatten(1, (3, self._heads, -1))
        v, d = qkv[:, 2], qkv.shape[-1]
        wide = _padded_queries_and_keys(padding, v)
        wide[..., :d].copy_(qkv[:, :2])
        found = []
        for bucket in pack.layout.buckets:
            q, k, values = (bucketed(each, bucket) for each in (wide[:, 0], wide[:, 1], v))
            rows = [
                biased_attention(q[:, :, first:last], k, values, bias, d**-0.5)
                for first, last, bias in biases.of(bucket.length)
            ]
            attended = torch.cat(rows, 2) if len(rows) > 1 else rows[0]
            found.append(attended.transpose(1, 2).flatten(0, 1).flatten(1))
        return gathered(found, pack, padding)


def _padded_queries_and_keys(padding: Padding, like: torch.Tensor) -> torch.Tensor:
    """Return room for the queries and keys of a layer, (slots, 2, heads, d + 8).

    All layers use the same, one after the other. What follows the d numbers is filled in here.
    """
    key = "queries and keys", like.dtype
    if key not in padding.kept:
        slots, heads, d = like.shape
        wide = like.new_zeros(slots, 2, heads, d + HIDING)
        wide[:, 0, :, d].fill_(1.0)
        wide[:, 1, :, d].masked_fill_(padding.is_padding[:, None], HIDDEN)
        padding.kept[key] = wide
    return padding.kept[key]  # type: ignore[no-any-return]


def _linear(weights: Weights, name: str) -> TensorMap:
    return linear(weights[f"{name}.weight"], weights[f"{name}.bias"])


def _norm(shape: DnabertShape, weights: Weights, name: str) -> TensorMap:
    weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    return lambda x: F.layer_norm(x, (shape.width,), weight, bias, shape.epsilon)


class _AlibiBiases:
    """ALiBi: what attention adds to its scores: -slope * |i - j|, with a slope for each head."""

    def __init__(self, heads: int, dtype: torch.dtype, device: torch.device) -> None:
        self._slopes = torch.tensor(slopes(heads)).to(device)[:, None, None]
        self._dtype = dtype
        self._whole = torch.empty(heads, 0, 0)

    def of(self, length: int) -> Iterator[tuple[int, int, torch.Tensor]]:
        """Yield (first token, token after the last, bias) for a sequence of this length.

        A bias is (1, heads, tokens, length). There is one for the whole sequence, which is kept and
        reused for shorter ones, or, beyond BIAS_MAX, one for each portion of its tokens.
        """
        if len(self._slopes) * length * length <= BIAS_MAX:
            if self._whole.shape[1] < length:
                size = -(-length // 64) * 64  # kernels need aligned rows
                self._whole = self._portion(0, size, size)
            yield 0, length, self._whole[None, :, :length, :length]
            return
        step = max(1, BIAS_MAX // (len(self._slopes) * length))
        for first in range(0, length, step):
            last = min(first + step, length)
            yield first, last, self._portion(first, last, -(-length // 64) * 64)[None, ..., :length]

    def _portion(self, first: int, last: int, length: int) -> torch.Tensor:
        """Return -slope * |i - j| for tokens i in [first, last) and j in [0, length)."""
        i = torch.arange(first, last, device=self._slopes.device)[:, None]
        j = torch.arange(length, device=self._slopes.device)
        return (-self._slopes * (i - j).abs()).to(self._dtype)


def slopes(heads: int) -> list[float]:
    """Return the ALiBi slope of each head.

    For 8 heads 1/2, 1/4 ... 1/256; for another power of two likewise down to 2**-8. For a number
    between two powers: all of the lower power's, then every other one of the higher power's. For 12
    heads: 8 and 4.
    """
    lower = 1 << int(math.log2(heads))
    series = [2.0 ** (-8.0 * (n + 1) / lower) for n in range(lower)]
    return series if heads == lower else series + slopes(2 * lower)[::2][: heads - lower]
