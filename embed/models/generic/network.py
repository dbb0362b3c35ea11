"""Load and run any other encoder that transformers has: BERT and its relatives, T5's encoder, ...

Sequences are packed where the model allows it, which is tried when it is loaded: a few sequences
must give the same states packed and padded. Otherwise every bucket of similar lengths is padded,
and masked.

transformers accepts two kinds of unsuitable files without an error, which are refused here: with
tensors missing, it would leave layers randomly initialised; with tensors left over, as in a
checkpoint of another architecture that claims to be a plain BERT, it would ignore them.

One of the doors to torch and transformers.
"""

from __future__ import annotations

import inspect
import logging
from pickle import UnpicklingError
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from embed.models.conventions.convention import LAST, Layers
from embed.models.generic import packed_attention
from embed.models.generic.shape import AFTER_PADDING, positions
from embed.models.generic.streamed_modules import stream_modules
from embed.models.packed.attention import gathered
from embed.models.packed.encoder import PackedEncoder
from embed.models.packed.kernels import AMPERE, Kernel
from embed.models.packed.layout import Frame
from embed.models.packed.pack import Pack
from embed.models.packed.products import DTYPES
from embed.models.packed.states import LayerStates
from embed.models.packed.streamed import NotStreamed, Place, Streamed
from embed.models.transformers_output import transformers_silenced
from fsqueue import ClaimImpossible

UNUSED: Final = "pooler"
"""A part after the encoder, which many models have untrained; the states are taken before it."""
DERIVED: Final = ("position_ids", "inv_freq", "masked_bias", "attn.bias", "embed_positions.weights")
"""Tables that follow from the configuration, which some files have and others lack."""

TRIAL_LENGTHS: Final = (6, 150, 2, 31)
"""How long the sequences are, in tokens, that are run packed and padded."""
TRIAL_TOLERANCE: Final = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 6e-2}
"""How far apart the states of a token may be on average, as a share of their length."""
TRIAL_OUTLIER: Final = 5.0
"""How many times that far those of one token may be."""

Ids = NDArray[np.int64]

log = logging.getLogger(__name__)


def load(
    folder: str, dtype: str, place: Place, frame: tuple[Ids, Ids], adapter: str = ""
) -> GenericEncoder:
    """Load the model in `folder`, with an adapter merged, if one is given.

    `frame` holds the tokens that begin and end every input.

    Raises ClaimImpossible unless its files match the architecture in transformers, and NotStreamed
    if its layers cannot visit a device one by one.
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
    if adapter:
        from embed.models.published.merge_adapter import merge_adapter

        model = merge_adapter(model, adapter)
    if config.is_encoder_decoder and not encoder_only:
        model = model.get_encoder()
    if model.main_input_name != "input_ids":
        raise ClaimImpossible(
            f"{folder}: a {config.model_type!r} reads {model.main_input_name}, not text. Give a "
            f"text or sequence encoder."
        )
    model = model.eval()
    if isinstance(place, Streamed):
        stream_modules(model, place.device)
        encoder = GenericEncoder(model, config, frame, positions(folder), place.device)
        encoder.try_streamed()
        return encoder
    return GenericEncoder(model.to(place), config, frame, positions(folder))


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
        self,
        model: Any,
        config: Any,
        frame: tuple[Ids, Ids],
        positions: int | None = None,
        device: torch.device | None = None,
    ) -> None:
        """`device` is where it computes, if its layers only visit that."""
        self._model = model
        self._padding = config.pad_token_id or 0
        self.width: int = config.hidden_size
        self.device, self.dtype = device or model.device, model.dtype
        begin, end = (tuple(ids.tolist()) for ids in frame)
        self.frame = Frame(begin, end, len(model.get_input_embeddings().weight), positions)
        self.head = 0
        self._name = config.model_type
        model.config.use_cache = False  # a decoder's keys are not needed again
        after_padding = config.model_type in AFTER_PADDING and config.pad_token_id is not None
        self._first_position = config.pad_token_id + 1 if after_padding else 0
        self._takes_positions = "position_ids" in inspect.signature(model.forward).parameters
        self._own_attention = config._attn_implementation
        self._attention = self._own_attention
        self._packs: dict[Kernel, bool] = {}

    def kernel(self, capability: tuple[int, int] | None) -> Kernel:
        """Return the fastest kernel that gives the model's own states; PADDED always does."""
        packed = Kernel.RUNS if capability is None else Kernel.VARLEN
        if packed is Kernel.VARLEN and (capability < AMPERE or self.dtype == torch.float32):  # type: ignore[operator]
            return Kernel.PADDED
        return packed if self.packs(packed) else Kernel.PADDED

    def states(self, pack: Pack, layers: Layers = LAST) -> torch.Tensor:
        """Return the chosen layers' states of every token of a pack, (tokens, width)."""
        return self._packed(pack, layers) if pack.padding is None else self._padded(pack, layers)

    def _padded(self, pack: Pack, layers: Layers) -> torch.Tensor:
        padding = pack.padding
        assert padding is not None
        self._attend_by(self._own_attention)
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
            found.append(_chosen(output, layers).flatten(0, 1))
        return gathered(found, pack, padding)

    # ---- packed ----

    def _packed(self, pack: Pack, layers: Layers) -> torch.Tensor:
        self._attend_by(packed_attention.NAME)
        positions = {}
        if self._takes_positions:
            positions = {"position_ids": (pack.positions + self._first_position).long()[None]}
        with packed_attention.packed(pack):
            output = self._model(
                input_ids=pack.tokens.long()[None],
                attention_mask=torch.ones_like(pack.tokens, dtype=torch.long)[None],
                output_hidden_states=bool(layers.numbers),
                **positions,
            )
        return _chosen(output, layers)[0]

    def _attend_by(self, name: str) -> None:
        if self._attention != name:
            self._attention = ""  # until it is changed everywhere
            self._model.set_attn_implementation(name)
            self._attention = name

    def packs(self, kernel: Kernel) -> bool:
        """Return whether a packed batch gives the states of a padded one; tried once."""
        if kernel not in self._packs:
            reason = self._why_not_packed(kernel)
            self._packs[kernel] = not reason
            if reason:
                log.info(
                    "sequences are padded in buckets of similar lengths: a %s cannot be packed "
                    "(%s)",
                    self._name,
                    reason,
                )
        return self._packs[kernel]

    def _why_not_packed(self, kernel: Kernel) -> str:
        sequences = self._trial()
        expected = self.hidden(sequences, kernel=Kernel.PADDED).rows.float()
        try:
            if not self._model._can_set_attn_implementation():
                return "its attention cannot be replaced"
            packed_attention.register()
            packed_attention.limit_biases(self._model)
            with transformers_silenced():
                found = self.hidden(sequences, kernel=kernel).rows.float()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of the model's code, for which this is unusual
            return _first_line(error)
        each = (found - expected).norm(dim=-1) / expected.norm(dim=-1)
        apart = max(each.mean().item(), each.max().item() / TRIAL_OUTLIER)
        if apart <= TRIAL_TOLERANCE[self.dtype]:
            return ""
        return f"its states would differ by {apart:.1e}"

    def try_streamed(self) -> None:
        """Run a few sequences. Raises NotStreamed if that is not possible."""
        try:
            self.hidden(self._trial(), kernel=Kernel.PADDED)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of the model's code, for which this is unusual
            raise NotStreamed(
                f"the layers of a {self._name} cannot be copied to the device one by one "
                f"({_first_line(error)})"
            ) from error

    def _trial(self) -> list[Ids]:
        """Return a few sequences of ordinary tokens."""
        rng = np.random.default_rng(7)
        special = {*self.frame.begin, *self.frame.end, self._padding}
        config = self._model.config
        special |= {getattr(config, name, None) for name in ("mask_token_id", "pad_token_id")}
        ordinary = np.array([n for n in range(self.frame.vocabulary) if n not in special])
        longest = (self.frame.positions or max(TRIAL_LENGTHS)) - self.frame.count
        return [rng.choice(ordinary, max(1, min(n, longest))) for n in TRIAL_LENGTHS]


def _chosen(output: Any, layers: Layers) -> torch.Tensor:
    """Return the chosen layers' states of a model's output."""
    chosen = LayerStates(layers)
    for number in set(layers.numbers):
        chosen.add(number, output.hidden_states[number])
    return chosen.finish(output.last_hidden_state)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
