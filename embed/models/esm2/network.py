"""Load an ESM-2 and run it on packed batches: sequences end to end, no padding, no mask.

transformers' `EsmModel` loads every published size and reports missing weights. The forward pass
over its tensors is written here, for packs (`packed.py`); its numbers are those of the stock model
for a single sequence, within 1e-5 (`tests/embed/models/test_esm2.py`).

One of the doors to torch and transformers. What this module does not know: residues, claims, and
how the hidden states are used.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch.nn import functional
from transformers import EsmModel

from embed.models.conventions.convention import LAST, Layers
from embed.models.esm2.tokenizer import BEGIN, END
from embed.models.packed.attention import attend
from embed.models.packed.encoder import PackedEncoder
from embed.models.packed.layout import Frame
from embed.models.packed.pack import Pack
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
from embed.models.transformers_output import transformers_silenced
from fsqueue import ClaimImpossible


def load(folder: str, dtype: str, place: Place, adapter: str = "") -> Esm2Encoder:
    """Load the model in `folder`, with an adapter merged, if one is given.

    Raises ClaimImpossible if a weight is missing, so that no layer is left randomly initialised.
    """
    with transformers_silenced():
        model, found = EsmModel.from_pretrained(
            folder,
            add_pooling_layer=False,
            dtype=DTYPES[dtype],
            local_files_only=True,
            output_loading_info=True,
            use_safetensors=True,
        )
    missing = sorted(found["missing_keys"])
    if missing:
        raise ClaimImpossible(
            f"{folder}: weights of the model are missing from its files ({len(missing)}; the first "
            f"is {missing[0]}); it was saved from another kind of model. Give a complete ESM-2."
        )
    if adapter:
        from embed.models.published.merge_adapter import merge_adapter

        model = merge_adapter(model, adapter)
    return Esm2Encoder(model.eval(), place)


class Esm2Encoder(PackedEncoder):
    """A loaded ESM-2: the tensors of transformers' `EsmModel`, computed in fewer and larger steps.

    Query, key and value come from one product. The two halves of each head that a rotation mixes
    are interleaved, so that the pairs are complex numbers and the rotation is one multiplication;
    the scores, sums over a head, do not depend on the order.
    """

    def __init__(self, model: Any, place: Place | None = None) -> None:
        """Take a model apart, and move it to its place layer by layer."""
        config, dtype = model.config, model.dtype
        place = place or model.device
        self.width: int = config.hidden_size
        self.device, self.dtype = device_of(place), dtype
        self._heads: int = config.num_attention_heads
        self.head = self.width // self._heads
        self.frame = Frame((BEGIN,), (END,), config.vocab_size)
        # In training 12 % of the inputs were masked with zeros; in inference none are.
        scale = 0.88 if config.token_dropout else 1.0
        mask = config.mask_token_id if config.token_dropout else None
        word = model.embeddings.word_embeddings.weight.detach()
        words = {"words": (word.float() * scale).to(dtype)}
        epsilon: float = config.layer_norm_eps
        norm_before = model.embeddings.layer_norm
        if norm_before:
            words |= _parameters("norm", norm_before)
        self._embed = place_layer(words, place, partial(_embedding, epsilon=epsilon, mask=mask))
        norm = _parameters("norm", model.encoder.emb_layer_norm_after)
        self._norm_after = place_layer(norm, place, partial(_norm, name="norm", epsilon=epsilon))
        self.inv_freq: torch.Tensor = model.rotary_embeddings.inv_freq.float().cpu()
        self._rotations = torch.empty(0, len(self.inv_freq), dtype=torch.complex64)
        self._keeps_tables = not isinstance(place, Streamed)
        build = partial(_Layer, heads=self._heads, epsilon=epsilon)
        self._layers = []
        for number, layer in enumerate(model.encoder.layer):
            model.encoder.layer[number] = torch.nn.Identity()  # the list no longer holds it
            weights = _layer_weights(layer, self._heads)
            self._layers.append(place_layer(weights, place, build))

    def states(self, pack: Pack, layers: Layers = LAST) -> torch.Tensor:
        """Return the chosen layers' states of every token of a pack, (tokens, width)."""
        return self.states_of([pack], layers)[0]

    def states_of(self, packs: Sequence[Pack], layers: Layers = LAST) -> list[torch.Tensor]:
        """Return the states of each pack; every layer is at its place once for all of them."""
        chosen = [LayerStates(layers) for _ in packs]
        table = self._rotation_table(max(pack.layout.longest for pack in packs))
        given = [(table[pack.attention_positions][:, None, None], pack) for pack in packs]
        states = [pack.tokens for pack in packs]
        apply_in_turn(self._embed, states, [(pack,) for pack in packs])
        for number, layer in enumerate(self._layers):
            for each, x in zip(chosen, states, strict=True):
                each.add(number, x)
            apply_in_turn(layer, states, given)
        apply_in_turn(self._norm_after, states, [()] * len(packs))
        for each, x in zip(chosen, states, strict=True):
            each.add(len(self._layers), x)
        return [each.finish(x) for each, x in zip(chosen, states, strict=True)]

    def _rotation_table(self, longest: int) -> torch.Tensor:
        """Return e^(i * position * inv_freq), (positions, d / 2) complex64."""
        if len(self._rotations) >= longest:
            return self._rotations
        count = 1 << (longest - 1).bit_length()  # so that there are few of these tables
        angles = torch.outer(torch.arange(count, dtype=torch.float32), self.inv_freq)
        table = torch.polar(torch.ones_like(angles), angles).to(self.device)
        if self._keeps_tables:
            self._rotations = table
        return table


def _embedding(weights: Weights, epsilon: float, mask: int | None) -> LayerMap:
    words = weights["words"]
    norm_before = _norm(weights, "norm", epsilon) if "norm.weight" in weights else None

    def embed(tokens: torch.Tensor, pack: Pack) -> torch.Tensor:
        x = functional.embedding(tokens, words)
        if pack.one_masked and mask is not None:  # the others make up for the zeros
            x = x.masked_fill((tokens == mask)[:, None], 0)
            x = x / (1 - 1 / pack.layout.longest)
        return x if norm_before is None else norm_before(x)

    return embed


class _Layer:
    """One layer."""

    def __init__(self, weights: Weights, heads: int, epsilon: float) -> None:
        self._heads = heads
        self._attention_norm = _norm(weights, "attention_norm", epsilon)
        self._mlp_norm = _norm(weights, "mlp_norm", epsilon)
        self._qkv, self._out = _linear(weights, "qkv"), _linear(weights, "out")
        self._up, self._down = _linear(weights, "up", gelu=True), _linear(weights, "down")

    def __call__(self, x: torch.Tensor, rotations: torch.Tensor, pack: Pack) -> torch.Tensor:
        qkv = pack.spread(self._qkv(self._attention_norm(x))).unflatten(1, (3, self._heads, -1))
        pairs = torch.view_as_complex(qkv[:, :2].float().unflatten(-1, (-1, 2)))
        rotated = torch.view_as_real(pairs * rotations).flatten(-2)
        q, k = rotated.to(pack.scores_dtype(qkv)).unbind(1)
        x = x + self._out(attend(q, k, qkv[:, 2], pack))
        return x + self._down(self._up(self._mlp_norm(x)))


def _layer_weights(layer: Any, heads: int) -> Weights:
    """Return the tensors of a layer as `_Layer` takes them."""
    attention = layer.attention
    parts = [_parameters("", getattr(attention.self, name)) for name in ("query", "key", "value")]
    qkv = {}
    for name in (".weight", ".bias"):
        query, key, value = (part[name] for part in parts)
        rows = [_interleaved(query, heads), _interleaved(key, heads), value]
        qkv[f"qkv{name}"] = torch.cat(rows)
    return {
        **qkv,
        **_parameters("out", attention.output.dense),
        **_parameters("up", layer.intermediate.dense),
        **_parameters("down", layer.output.dense),
        **_parameters("attention_norm", attention.LayerNorm),
        **_parameters("mlp_norm", layer.LayerNorm),
    }


def _parameters(name: str, module: Any) -> dict[str, torch.Tensor]:
    weight, bias = module.weight.detach(), module.bias.detach()
    return {f"{name}.weight": weight, f"{name}.bias": bias}


def _linear(weights: Weights, name: str, *, gelu: bool = False) -> TensorMap:
    return linear(weights[f"{name}.weight"], weights[f"{name}.bias"], gelu=gelu)


def _norm(weights: Weights, name: str, epsilon: float) -> TensorMap:
    weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    return lambda x: functional.layer_norm(x, weight.shape, weight, bias, epsilon)


def _interleaved(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Reorder each head's rows from (first half, second half) to pairs of one of each."""
    return rows.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(rows.shape)
