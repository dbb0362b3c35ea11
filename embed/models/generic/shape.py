"""Know of a model of any other architecture what planning asks: its width, its longest input.

What decides is whether transformers itself has the architecture. Code that comes with a model is
never run. What this module does not know: how a model computes, and how it reads a text.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any, Final

from fsqueue import UsageError

WIDTHS: Final = ("hidden_size", "d_model", "n_embd", "dim", "embedding_size")
POSITIONS: Final = ("max_position_embeddings", "n_positions", "max_sequence_length")
NO_LIMIT: Final = 1 << 20
"""What stands for "none" where a publisher writes 10**30; and what a window of tokens is then."""
TOKENIZERS: Final = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
)
"""Of these a model has one, and reads texts by it; the first is taken if it is there."""
BESIDE: Final = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "sentence_bert_config.json",
)
"""What decides, too, how a text is read, where a model has it."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What planning must know of a model."""

    width: int
    tokens_max: int
    """The longest input in tokens, begin and end included."""

    @classmethod
    def read(cls, folder: str) -> Shape:
        """Return the shape of the model in `folder`.

        Raises UsageError if transformers has no such model, or its tokenizer is missing.
        """
        config = _json(f"{folder}/config.json")
        _refuse_strangers(folder, config)
        if not any(os.path.isfile(f"{folder}/{name}") for name in TOKENIZERS):
            raise UsageError(
                f"{folder}: holds no tokenizer (tokenizer.json or a vocabulary), so nothing could "
                f"be read. Fetch the model again; it is among its files."
            )
        found = [config[name] for name in WIDTHS if isinstance(config.get(name), int)]
        if not found or not config.get("vocab_size"):
            raise UsageError(
                f"{folder}: a {config['model_type']!r} has no single width or vocabulary, so it "
                f"does not turn text into vectors. Give a text or sequence encoder."
            )
        return cls(found[0], _tokens_max(folder, config))


def _refuse_strangers(folder: str, config: dict[str, Any]) -> None:
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    kind = config.get("model_type")
    if kind in MODEL_MAPPING_NAMES:
        return
    why = "comes with code of its own, which is never run" if "auto_map" in config else "is unknown"
    raise UsageError(
        f"{folder}: is a model of type {kind!r}, which {why}, and transformers has no model of "
        f"that type. Give an ESM-2, a DNABERT, or another model that transformers has."
    )


def _tokens_max(folder: str, config: dict[str, Any]) -> int:
    """Return the least of what the model's publisher says in several places."""
    known = [config[name] for name in POSITIONS if isinstance(config.get(name), int)][:1]
    if known and config.get("pad_token_id") == 1:
        known = [known[0] - 2]  # RoBERTa and its kin count positions from the padding's number on
    known.append(_json(f"{folder}/tokenizer_config.json").get("model_max_length"))
    known.append(_json(f"{folder}/sentence_bert_config.json").get("max_seq_length"))
    return min([int(n) for n in known if n and 0 < n < NO_LIMIT], default=NO_LIMIT)


def _json(path: str) -> dict[str, Any]:
    if not os.path.isfile(path):
        return {}
    with open(path, encoding="utf-8") as file:
        data = json.load(file)
    return data if isinstance(data, dict) else {}
