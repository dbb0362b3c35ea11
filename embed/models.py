"""Load an ESM-2 and run it on packed batches: sequences end to end, no padding, no mask.

The only door to transformers. The model is its stock `EsmModel`; what is ours is one registered
attention function, which attends inside each sequence of the pack and nowhere else. The numbers are
those of a sequence alone (`tests/embed/test_models.py` holds them to 1e-5).

What this module does not know: residues, claims, and what becomes of the hidden states.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, Final

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, EsmModel
from transformers.utils import logging

from embed.residues import BEGIN, END
from fsqueue import ClaimImpossible

PACKED: Final = "fsqueue_packed"
DTYPES: Final = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}


def load(folder: str, dtype: str, device: torch.device) -> Encoder:
    """Load the model in `folder`. Raises ClaimImpossible if a weight is missing: no layer is ever
    left as it was initialised at random."""
    with quietly():
        model, found = EsmModel.from_pretrained(
            folder,
            add_pooling_layer=False,
            attn_implementation=PACKED,
            dtype=DTYPES[dtype],
            local_files_only=True,
            output_loading_info=True,
            use_safetensors=True,
        )
    missing = sorted(found["missing_keys"])
    if missing:
        raise ClaimImpossible(
            f"{folder}: {len(missing)} of the model's weights are not in its files, {missing[0]} "
            f"first; it was saved from another kind of model. Give a complete ESM-2."
        )
    return Encoder(model.to(device))


class Encoder:
    """A loaded ESM-2."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.width: int = model.config.hidden_size
        self.device: torch.device = model.device

    def hidden(self, sequences: Sequence[bytes]) -> list[torch.Tensor]:
        """Return the last layer's states of each sequence of token ids, (ids + 2, width) each.

        The first and last row belong to the begin and end tokens, which are added here.
        """
        lengths = [len(ids) + 2 for ids in sequences]
        packed = b"".join(bytes([BEGIN]) + ids + bytes([END]) for ids in sequences)
        tokens = np.frombuffer(packed, np.uint8).astype(np.int64)
        positions = np.concatenate([np.arange(length) for length in lengths])
        with torch.inference_mode():
            output = self._model(
                input_ids=torch.from_numpy(tokens)[None].to(self.device),
                position_ids=torch.from_numpy(positions)[None].to(self.device),
                runs=list(_runs(lengths)),
            )
            return list(output.last_hidden_state[0].split(lengths))


def _runs(lengths: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Yield (start, sequences, length) for every run of sequences of equal length."""
    start = 0
    for length, equal in groupby(lengths):
        count = len(list(equal))
        yield start, count, length
        start += count * length


def packed_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    runs: Sequence[tuple[int, int, int]],
    scaling: float,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend inside each sequence. Takes (1, heads, tokens, d); returns (1, tokens, heads, d).

    One call per run of equal lengths. A block-diagonal mask over the whole pack, flex attention and
    nested tensors give the same numbers and were 5 to 13 times slower on CPU.
    """
    output = torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format)
    for start, count, length in runs:
        stop = start + count * length
        parts = (x[0, :, start:stop].unflatten(1, (count, length)) for x in (query, key, value))
        q, k, v = (part.transpose(0, 1) for part in parts)  # (count, heads, length, d)
        attended = scaled_dot_product_attention(q, k, v, scale=scaling)
        output[0, start:stop] = attended.transpose(1, 2).flatten(0, 1)
    return output, None


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, lambda *_args, **_options: None)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keep transformers from printing its loading bar and its table of unused weights."""
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
