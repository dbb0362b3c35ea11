"""Any other encoder that transformers has: BERT and its kin, T5's encoder, ESM-1, ...

Nothing is known of how it attends, so batches are padded, with a mask, and never by much: they come
sorted by length, and one that is uneven all the same is divided. One of the doors to transformers.

Two ways to load a model wrongly without an error are closed here: a layer that the files lack would
stay as it was initialised at random, and a tensor that the model has no place for would be left
out, as where a checkpoint of another architecture claims to be a plain BERT.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pickle import UnpicklingError
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from embed.models.esm2.network import DTYPES, quietly
from fsqueue import ClaimImpossible

EVEN: Final = 0.75
"""In one padded batch the shortest has at least this part of the longest's tokens."""
NOT_NEEDED: Final = "pooler"
"""What many have beside the encoder and few were trained with; the states come from before it."""
FIXED: Final = ("position_ids", "inv_freq", "masked_bias", "attn.bias", "embed_positions.weights")
"""Tables that older files hold, though they follow from the configuration."""

Ids = NDArray[np.int64]


def load(folder: str, dtype: str, device: torch.device, frame: tuple[Ids, Ids]) -> Encoder:
    """Load the model in `folder`; `frame` are the tokens that begin and end every input.

    Raises ClaimImpossible unless its files and the architecture in transformers agree.
    """
    from transformers import MODEL_FOR_TEXT_ENCODING_MAPPING as ENCODERS
    from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding

    try:
        with quietly():
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
            halved = config.is_encoder_decoder and type(config) in ENCODERS
            kind = AutoModelForTextEncoding if halved else AutoModel
            model, found = kind.from_pretrained(
                folder,
                config=config,
                dtype=DTYPES[dtype],
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, ImportError, UnpicklingError) as error:
        raise ClaimImpossible(
            f"{folder}: transformers cannot load this model ({_first_line(error)}); its files are "
            f"damaged, or it needs another version. Fetch it again, or give another model."
        ) from error
    _check(folder, model, found)
    if config.is_encoder_decoder and not halved:
        model = model.get_encoder()
    if model.main_input_name != "input_ids":
        raise ClaimImpossible(
            f"{folder}: a {config.model_type!r} reads {model.main_input_name}, not text. Give a "
            f"text or sequence encoder."
        )
    return Encoder(model.to(device).eval(), config, frame)


def _check(folder: str, model: Any, found: dict[str, Any]) -> None:
    missing = sorted(name for name in found["missing_keys"] if NOT_NEEDED not in name.split("."))
    parts = {name for name, _ in model.named_children()} - {NOT_NEEDED}
    prefix = f"{model.base_model_prefix}."
    strange = sorted(
        name
        for name in found["unexpected_keys"]
        if name.removeprefix(prefix).split(".")[0] in parts and not name.endswith(FIXED)
    )
    for names, what in ((missing, "are not in its files"), (strange, "have no place in it")):
        if names:
            raise ClaimImpossible(
                f"{folder}: {len(names)} weights {what}, {names[0]} first: it was saved from "
                f"another architecture than the {type(model).__name__} of transformers, and "
                f"would be random in part. Give a model that transformers has."
            )


class Encoder:
    """A loaded model of any architecture."""

    def __init__(self, model: Any, config: Any, frame: tuple[Ids, Ids]) -> None:
        self._model = model
        self._begin, self._end = frame
        self._padding = config.pad_token_id or 0
        self.width: int = config.hidden_size
        self.device: torch.device = model.device

    def hidden(self, sequences: Sequence[Ids]) -> list[torch.Tensor]:
        """Return the last layer's states of each sequence of token ids, (tokens, width) each.

        The tokens that begin and end an input are added here, and have the first and last rows.
        """
        framed = [np.concatenate([self._begin, ids, self._end]) for ids in sequences]
        states: list[torch.Tensor] = []
        for batch in even(framed):
            states += self._padded(batch)
        return states

    def _padded(self, batch: Sequence[Ids]) -> list[torch.Tensor]:
        longest = max(map(len, batch))
        ids = np.full((len(batch), longest), self._padding, np.int64)
        mask = np.zeros((len(batch), longest), np.int64)
        for row, one in enumerate(batch):
            ids[row, : len(one)] = one
            mask[row, : len(one)] = 1
        with torch.inference_mode():
            states = self._model(
                input_ids=torch.from_numpy(ids).to(self.device),
                attention_mask=torch.from_numpy(mask).to(self.device),
            ).last_hidden_state
        return [row[: len(one)] for row, one in zip(states, batch, strict=True)]


def even(framed: Sequence[Ids]) -> Iterator[list[Ids]]:
    """Divide a batch, in its order, into runs of sequences of about equal length."""
    run: list[Ids] = []
    shortest = longest = 0
    for one in framed:
        size = len(one)
        if run and min(shortest, size) < EVEN * max(longest, size):
            yield run
            run = []
        shortest, longest = (min(shortest, size), max(longest, size)) if run else (size, size)
        run.append(one)
    yield run


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
