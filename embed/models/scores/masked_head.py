"""Load a masked-LM head: from the last state of a token to the logits of all tokens.

transformers' own class of the architecture computes it. It is loaded without the encoder's layers,
and in place of the encoder it gets one that returns states which are already computed; so no head
needs code of its own here. It computes in float32, whatever the encoder's precision.

One of the doors to torch and transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch

from embed.models.cost import LAYERS
from embed.models.transformers_output import transformers_silenced
from fsqueue import ClaimImpossible

TensorMap = Callable[[torch.Tensor], torch.Tensor]
OF_LAYERS: Final = "layer_types"
"""A list with an entry for each layer, in some configurations."""


def load_masked_head(folder: str, device: torch.device) -> TensorMap:
    """Load the head of the model in `folder`: (tokens, width) to (tokens, vocabulary), float32.

    Raises ClaimImpossible if it is not among the weights.
    """
    with transformers_silenced():
        try:
            model, found = _load(folder, layers=False)
        except (ValueError, RuntimeError, TypeError, AttributeError, LookupError):
            model, found = _load(folder, layers=True)  # it does not exist without layers
    prefix = f"{model.base_model_prefix}."
    missing = sorted(name for name in found["missing_keys"] if not name.startswith(prefix))
    if missing:
        raise ClaimImpossible(
            f"{folder}: weights of its masked-LM head are missing ({len(missing)}; the first is "
            f"{missing[0]}), so scores would be random. Leave out --scores."
        )
    encoder = _Computed()
    setattr(model, model.base_model_prefix, encoder)
    model = model.to(device).eval()
    no_ids = torch.zeros(1, 1, dtype=torch.long, device=device)

    def head(states: torch.Tensor) -> torch.Tensor:
        encoder.states = states.float()[None]
        logits: torch.Tensor = model(input_ids=no_ids).logits[0]
        return logits.float()

    return head


def _load(folder: str, *, layers: bool) -> tuple[Any, dict[str, Any]]:
    from transformers import AutoConfig, AutoModelForMaskedLM

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    if not layers:
        for name in LAYERS:
            if getattr(config, name, None):
                setattr(config, name, 0)
        if getattr(config, OF_LAYERS, None):
            setattr(config, OF_LAYERS, [])
    return AutoModelForMaskedLM.from_pretrained(  # type: ignore[no-any-return]
        folder,
        config=config,
        dtype=torch.float32,
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
        ignore_mismatched_sizes=not layers,  # ESM's contact head has a weight for each layer
    )


class _Computed(torch.nn.Module):
    """An encoder that returns states which are already computed."""

    states: torch.Tensor

    def forward(self, *_args: Any, **_options: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

        return BaseModelOutputWithPoolingAndCrossAttentions(last_hidden_state=self.states)
