"""Load an ESM-2 and run it on packed batches: sequences end to end, no padding, no mask.

transformers' `EsmModel` loads every published size and reports missing weights. The forward pass
over its tensors is written here, for packs (`packed.py`); its numbers are those of the stock model
for a single sequence, within 1e-5 (`tests/embed/models/test_esm2.py`).

One of the doors to torch and transformers. What this module does not know: residues, claims, and
how the hidden states are used.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional
from transformers import EsmModel

from embed.models.convention import LAST, Layers
from embed.models.esm2.tokenizer import BEGIN, END
from embed.models.packed import (
    DTYPES,
    Frame,
    Pack,
    PackedEncoder,
    TensorMap,
    attend,
    linear,
)
from embed.models.states import LayerStates
from embed.models.transformers_output import transformers_silenced
from fsqueue import ClaimImpossible


def load(folder: str, dtype: str, device: torch.device, adapter: str = "") -> Esm2Encoder:
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
        from embed.models.merge_adapter import merge_adapter

        model = merge_adapter(model, adapter)
    return Esm2Encoder(model.eval(), device)


class Esm2Encoder(PackedEncoder):
    """A loaded ESM-2: the tensors of transformers' `EsmModel`, computed in fewer and larger steps.

    Query, key and value come from one product. The two halves of each head that a rotation mixes
    are interleaved, so that the pairs are complex numbers and the rotation is one multiplication;
    the scores, sums over a head, do not depend on the order.
    """

    def __init__(self, model: Any, device: torch.device | None = None) -> None:
        """Take a model apart, and move it to a device layer by layer.

        So the device never holds more than the result and one layer of the model.
        """
        config, dtype = model.config, model.dtype
        device = device or model.device
        self.width: int = config.hidden_size
        self.device, self.dtype = device, dtype
        self._heads: int = config.num_attention_heads
        self.head = self.width // self._heads
        self.frame = Frame((BEGIN,), (END,), config.vocab_size)
        # In training 12 % of the inputs were masked with zeros; in inference none are.
        scale = 0.88 if config.token_dropout else 1.0
        self._mask = config.mask_token_id if config.token_dropout else None
        word = model.embeddings.word_embeddings.weight.detach()
        self._words = (word.float() * scale).to(device, dtype)
        norm_before = model.embeddings.layer_norm
        self._norm_before = norm_before and _moved(norm_before, device)
        self._norm_after = _moved(model.encoder.emb_layer_norm_after, device)
        self.inv_freq: torch.Tensor = model.rotary_embeddings.inv_freq.float().cpu()
        self._rotations = torch.empty(0, len(self.inv_freq), dtype=torch.complex64)
        self._layers = []
        for number, layer in enumerate(model.encoder.layer):
            model.encoder.layer[number] = torch.nn.Identity()  # the list no longer holds it
            self._layers.append(_Layer(_moved(layer, device), self._heads))

    def states(self, pack: Pack, layers: Layers = LAST) -> torch.Tensor:
        """Return the chosen layers' states of every token of a pack, (tokens, width)."""
        chosen = LayerStates(layers)
        rotations = self._rotations_of(pack)
        x = functional.embedding(pack.tokens, self._words)
        if pack.one_masked and self._mask is not None:  # the others make up for the zeros
            x = x.masked_fill((pack.tokens == self._mask)[:, None], 0)
            x = x / (1 - 1 / pack.layout.longest)
        if self._norm_before is not None:
            x = self._norm_before(x)
        for number, layer in enumerate(self._layers):
            chosen.add(number, x)
            x = layer(x, rotations, pack)
        last = self._norm_after(x)
        chosen.add(len(self._layers), last)
        return chosen.finish(last)

    def _rotations_of(self, pack: Pack) -> torch.Tensor:
        """Return e^(i * position * inv_freq), (rows, 1, 1, d / 2) complex64, for `Pack.spread`."""
        longest = pack.layout.longest
        if len(self._rotations) < longest:
            count = 1 << (longest - 1).bit_length()  # so that there are few of these tables
            angles = torch.outer(torch.arange(count, dtype=torch.float32), self.inv_freq)
            self._rotations = torch.polar(torch.ones_like(angles), angles).to(self.device)
        return self._rotations[pack.attention_positions][:, None, None]


class _Layer:
    """One layer; its norms are the model's own modules."""

    def __init__(self, layer: Any, heads: int) -> None:
        attention = layer.attention
        projections = [getattr(attention.self, name) for name in ("query", "key", "value")]
        weights = [_interleaved(p.weight.detach(), heads) for p in projections[:2]]
        biases = [_interleaved(p.bias.detach(), heads) for p in projections[:2]]
        self._heads = heads
        self._attention_norm, self._mlp_norm = attention.LayerNorm, layer.LayerNorm
        self._qkv = linear(
            torch.cat([*weights, projections[2].weight.detach()]),
            torch.cat([*biases, projections[2].bias.detach()]),
        )
        self._out = _linear(attention.output.dense)
        self._up = _linear(layer.intermediate.dense, gelu=True)
        self._down = _linear(layer.output.dense)

    def __call__(self, x: torch.Tensor, rotations: torch.Tensor, pack: Pack) -> torch.Tensor:
        qkv = pack.spread(self._qkv(self._attention_norm(x))).unflatten(1, (3, self._heads, -1))
        pairs = torch.view_as_complex(qkv[:, :2].float().unflatten(-1, (-1, 2)))
        rotated = torch.view_as_real(pairs * rotations).flatten(-2)
        q, k = rotated.to(pack.scores_dtype(qkv)).unbind(1)
        x = x + self._out(attend(q, k, qkv[:, 2], pack))
        return x + self._down(self._up(self._mlp_norm(x)))


def _moved(module: Any, device: torch.device) -> Any:
    """Return a module on a device."""
    is_there = next(module.parameters()).device == device
    return module if is_there else module.to(device)


def _linear(module: Any, *, gelu: bool = False) -> TensorMap:
    return linear(module.weight.detach(), module.bias.detach(), gelu=gelu)


def _interleaved(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Reorder each head's rows from (first half, second half) to pairs of one of each."""
    return rows.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(rows.shape)
