"""Load and run any other encoder that transformers has: BERT and its relatives, T5's encoder, ...

How it attends is not known, so batches are padded, with a mask. They arrive sorted by length, and
one of uneven lengths is divided, so there is little padding.

transformers accepts two kinds of unsuitable files without an error, which are refused here: with
tensors missing, it would leave layers randomly initialised; with tensors left over, as in a
checkpoint of another architecture that claims to be a plain BERT, it would ignore them.

One of the doors to torch and transformers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pickle import UnpicklingError
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from embed.models.convention import LAST, Layers
from embed.models.packed import DTYPES, to_device
from embed.models.states import LayerStates, States
from embed.models.transformers_output import transformers_silenced
from fsqueue import ClaimImpossible

EVEN: Final = 0.75
"""In one padded batch the shortest sequence has at least this fraction of the longest's tokens."""
UNUSED: Final = "pooler"
"""A part after the encoder, which many models have untrained; the states are taken before it."""
DERIVED: Final = ("position_ids", "inv_freq", "masked_bias", "attn.bias", "embed_positions.weights")
"""Tables in older files that follow from the configuration."""

Ids = NDArray[np.int64]


def load(folder: str, dtype: str, device: torch.device, frame: tuple[Ids, Ids]) -> GenericEncoder:
    """Load the model in `folder`; `frame` holds the tokens that begin and end every input.

    Raises ClaimImpossible unless its files match the architecture in transformers.
    """
    from transformers import MODEL_FOR_TEXT_ENCODING_MAPPING as ENCODERS
    from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding

    try:
        with transformers_silenced():
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
            encoder_only = config.is_encoder_decoder and type(config) in ENCODERS
            model_class = AutoModelForTextEncoding if encoder_only else AutoModel
            model, found = model_class.from_pretrained(
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
    _check_weights(folder, model, found)
    if config.is_encoder_decoder and not encoder_only:
        model = model.get_encoder()
    if model.main_input_name != "input_ids":
        raise ClaimImpossible(
            f"{folder}: a {config.model_type!r} reads {model.main_input_name}, not text. Give a "
            f"text or sequence encoder."
        )
    return GenericEncoder(model.to(device).eval(), config, frame)


def _check_weights(folder: str, model: Any, found: dict[str, Any]) -> None:
    missing = sorted(name for name in found["missing_keys"] if UNUSED not in name.split("."))
    parts = {name for name, _ in model.named_children()} - {UNUSED}
    prefix = f"{model.base_model_prefix}."
    unexpected = sorted(
        name
        for name in found["unexpected_keys"]
        if name.removeprefix(prefix).split(".")[0] in parts and not name.endswith(DERIVED)
    )
    for names, what in ((missing, "missing from"), (unexpected, "unexpected in")):
        if names:
            raise ClaimImpossible(
                f"{folder}: weights are {what} its files ({len(names)}; the first is {names[0]}): "
                f"it was saved from another architecture than transformers' "
                f"{type(model).__name__}, which would be partly random. Give a model that "
                f"transformers has."
            )


class GenericEncoder:
    """A loaded model of any architecture."""

    def __init__(self, model: Any, config: Any, frame: tuple[Ids, Ids]) -> None:
        self._model = model
        self._begin, self._end = frame
        self._padding = config.pad_token_id or 0
        self.width: int = config.hidden_size
        self.device: torch.device = model.device

    def hidden(self, sequences: Sequence[Ids], layers: Layers = LAST) -> States:
        """Return the chosen layers' states of sequences of token ids, (tokens, width) each.

        The first and last rows of each belong to the begin and end tokens, which are added here.
        """
        framed = [np.concatenate([self._begin, ids, self._end]) for ids in sequences]
        with torch.inference_mode():
            parts = [self._run_padded(batch, layers) for batch in even_batches(framed)]
            bounds = torch.from_numpy(np.cumsum([0, *map(len, framed)]))
            return States(torch.cat(parts), to_device(bounds, self.device))

    def _run_padded(self, batch: Sequence[Ids], layers: Layers) -> torch.Tensor:
        """Return the states of all tokens of the batch, without the padding."""
        longest = max(map(len, batch))
        ids = np.full((len(batch), longest), self._padding, np.int64)
        mask = np.zeros((len(batch), longest), np.int64)
        for row, one in enumerate(batch):
            ids[row, : len(one)] = one
            mask[row, : len(one)] = 1
        output = self._model(
            input_ids=to_device(torch.from_numpy(ids), self.device),
            attention_mask=to_device(torch.from_numpy(mask), self.device),
            output_hidden_states=bool(layers.numbers),
        )
        chosen = LayerStates(layers)
        for number in set(layers.numbers):
            chosen.add(number, output.hidden_states[number])
        states = chosen.finish(output.last_hidden_state)
        real = to_device(torch.from_numpy(np.flatnonzero(mask)), self.device)
        return states.flatten(0, 1).index_select(0, real)


def even_batches(framed: Sequence[Ids]) -> Iterator[list[Ids]]:
    """Divide a batch, in its order, into runs of sequences of similar length."""
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
