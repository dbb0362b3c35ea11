"""Load and run any other encoder that transformers has: BERT and its relatives, T5's encoder, ...

How it attends is not known, so every bucket of similar lengths is padded, and masked.

transformers accepts two kinds of unsuitable files without an error, which are refused here: with
tensors missing, it would leave layers randomly initialised; with tensors left over, as in a
checkpoint of another architecture that claims to be a plain BERT, it would ignore them.

One of the doors to torch and transformers.
"""

from __future__ import annotations

from pickle import UnpicklingError
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from embed.models.convention import LAST, Layers
from embed.models.generic.shape import positions
from embed.models.packed import DTYPES, Frame, Kernel, Pack, PackedEncoder, gathered
from embed.models.states import LayerStates
from embed.models.transformers_output import transformers_silenced
from fsqueue import ClaimImpossible

UNUSED: Final = "pooler"
"""A part after the encoder, which many models have untrained; the states are taken before it."""
DERIVED: Final = ("position_ids", "inv_freq", "masked_bias", "attn.bias", "embed_positions.weights")
"""Tables that follow from the configuration, which some files have and others lack."""

Ids = NDArray[np.int64]


def load(folder: str, dtype: str, device: torch.device, frame: tuple[Ids, Ids]) -> GenericEncoder:
    """Load the model in `folder`; `frame` holds the tokens that begin and end every input.

    Raises ClaimImpossible unless its files match the architecture in transformers.
    """
    from transformers import MODEL_FOR_TEXT_ENCODING_MAPPING as ENCODERS
    from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding

    from embed.models.generic.gated_esm import GatedEsmModel, is_gated

    try:
        with transformers_silenced():
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
            # T5's encoder alone is saved as no encoder-decoder, which AutoModel takes for a T5.
            named = getattr(ENCODERS.get(type(config), None), "__name__", "")
            encoder_only = named.endswith("EncoderModel")
            model_class = AutoModelForTextEncoding if encoder_only else AutoModel
            if is_gated(config):
                model_class = GatedEsmModel
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
    return GenericEncoder(model.to(device).eval(), config, frame, positions(folder))


def _check_weights(folder: str, model: Any, found: dict[str, Any]) -> None:
    missing = sorted(
        name
        for name in found["missing_keys"]
        if UNUSED not in name.split(".") and not name.endswith(DERIVED)
    )
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


class GenericEncoder(PackedEncoder):
    """A loaded model of any architecture."""

    def __init__(
        self, model: Any, config: Any, frame: tuple[Ids, Ids], positions: int | None = None
    ) -> None:
        self._model = model
        self._padding = config.pad_token_id or 0
        self.width: int = config.hidden_size
        self.device, self.dtype = model.device, model.dtype
        begin, end = (tuple(ids.tolist()) for ids in frame)
        self.frame = Frame(begin, end, len(model.get_input_embeddings().weight), positions)
        self.head = 0

    def kernel(self, capability: tuple[int, int] | None) -> Kernel:
        """Return PADDED: how the model attends is not known."""
        return Kernel.PADDED

    def states(self, pack: Pack, layers: Layers = LAST) -> torch.Tensor:
        """Return the chosen layers' states of every token of a pack, (tokens, width)."""
        padding = pack.padding
        assert padding is not None, "its kernel is PADDED"
        ids = pack.spread(pack.tokens).masked_fill(padding.is_padding, self._padding).long()
        mask = (~padding.is_padding).long()
        found = []
        for bucket in pack.layout.buckets:
            shape = bucket.count, bucket.length
            output = self._model(
                input_ids=ids[bucket.slot : bucket.stop].view(shape),
                attention_mask=mask[bucket.slot : bucket.stop].view(shape),
                output_hidden_states=bool(layers.numbers),
            )
            chosen = LayerStates(layers)
            for number in set(layers.numbers):
                chosen.add(number, output.hidden_states[number])
            found.append(chosen.finish(output.last_hidden_state).flatten(0, 1))
        return gathered(found, pack, padding)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
