"""What planning must know about a model of any other architecture: its width, its longest input.

A model is accepted if transformers itself has its architecture. Code that comes with a model is
never run. What this module does not know: how a model computes, and how it tokenizes a text.
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
"""Limits from here on mean none, as where a publisher writes 10**30; a window is this long then."""
COMPUTED: Final = {
    *("rope_theta", "rope_scaling", "rope_parameters", "rotary_emb_base", "global_rope_theta"),
    *("relative_attention_num_buckets", "relative_attention_max_distance", "alibi"),
}
"""Settings of models that compute positions, and so have no table that could end."""
WITH_TABLE: Final = {"absolute", "relative_key", "relative_key_query"}
AFTER_PADDING: Final = {
    *("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "esm", "longformer", "mpnet"),
    *("data2vec-text", "ibert", "roberta-prelayernorm", "xmod"),
}
"""Types of models that number positions from pad_token_id + 1."""
TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
)
"""A model has one of these, which holds its vocabulary; tokenizer.json is used if it exists."""
SENTENCEPIECE_FILES: Final = ("spiece.model", "sentencepiece.bpe.model")
TOKENIZER_SETTINGS: Final = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "sentence_bert_config.json",
)
"""Optional files that affect how a text is tokenized, too."""


@dataclass(frozen=True, slots=True)
class GenericShape:
    """What planning must know about a model."""

    width: int
    tokens_max: int
    """The longest input in tokens, begin and end included."""

    @classmethod
    def read(cls, folder: str) -> GenericShape:
        """Return the shape of the model in `folder`.

        Raises UsageError if transformers has no such model, or its tokenizer is missing.
        """
        config = _json(f"{folder}/config.json")
        _refuse_unknown_type(folder, config)
        if not any(os.path.isfile(f"{folder}/{name}") for name in TOKENIZER_FILES):
            raise UsageError(
                f"{folder}: has no tokenizer (tokenizer.json or a vocabulary), so it cannot read "
                f"its inputs. Fetch the model again; the tokenizer is among its files."
            )
        found = [config[name] for name in WIDTHS if isinstance(config.get(name), int)]
        if not found or not config.get("vocab_size"):
            raise UsageError(
                f"{folder}: a {config['model_type']!r} has no single width or vocabulary, so it "
                f"does not turn text into vectors. Give a text or sequence encoder."
            )
        return cls(found[0], _tokens_max(folder, config))


def _refuse_unknown_type(folder: str, config: dict[str, Any]) -> None:
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    model_type = config.get("model_type")
    if model_type in MODEL_MAPPING_NAMES:
        return
    own_code = ""
    if "auto_map" in config:
        own_code = (
            " It comes with its own code, which is never run; a handler of your own can run it "
            "(README, Your own handler)."
        )
    raise UsageError(
        f"{folder}: is a model of type {model_type!r}, which transformers does not have.{own_code} "
        f"Give an ESM-2, a DNABERT, or another model that transformers has."
    )


def refuse_too_long(folder: str, asked: int, what: str = "--max-residues") -> None:
    """Raise UsageError if a model in `folder` would fail for inputs of so many tokens.

    R48 An input longer than the model's table of positions is refused when it is planned, with the
        longest that works: in the worker it would be an index out of range.
    """
    most = positions(folder)
    if most is not None and asked > most:
        raise UsageError(
            f"{what} {asked:,}: {folder} has positions for {most:,} tokens, begin and end "
            f"included, and fails beyond them. The longest that works: {what} {most}. "
            f"--long window reads longer sequences in windows of that size."
        )


def positions(folder: str) -> int | None:
    """Return how many tokens a model's table of positions is for; None if it has no such table."""
    return _positions(_json(f"{folder}/config.json"))


def _positions(config: dict[str, Any]) -> int | None:
    """Return how many tokens a model's table of positions is for; None if it has no such table."""
    known = [config[name] for name in POSITIONS if isinstance(config.get(name), int)]
    kind = config.get("position_embedding_type")
    is_mpnet = config.get("model_type") == "mpnet"  # it has a table, and a relative bias besides
    if not known or (kind is None and COMPUTED & config.keys() and not is_mpnet):
        return None
    if config.get("relative_attention") and not config.get("position_biased_input", True):
        return None
    if kind is not None and kind not in WITH_TABLE:
        return None
    padding = config.get("pad_token_id")
    offset = int(padding) + 1 if config.get("model_type") in AFTER_PADDING and padding else 0
    if padding == 1 or is_mpnet:
        offset = 2  # as in `_tokens_max`; MPNet's padding is 1 whatever its configuration says
    return int(known[0]) - offset


def _tokens_max(folder: str, config: dict[str, Any]) -> int:
    """Return the smallest of the limits that the model's files name in several places."""
    known = [config[name] for name in POSITIONS if isinstance(config.get(name), int)][:1]
    if known and config.get("pad_token_id") == 1:
        known = [known[0] - 2]  # RoBERTa and its relatives number positions from pad_token_id + 1
    known.append(_json(f"{folder}/tokenizer_config.json").get("model_max_length"))
    known.append(_json(f"{folder}/sentence_bert_config.json").get("max_seq_length"))
    return min([int(n) for n in known if n and 0 < n < NO_LIMIT], default=NO_LIMIT)


def _json(path: str) -> dict[str, Any]:
    if not os.path.isfile(path):
        return {}
    with open(path, encoding="utf-8") as file:
        data = json.load(file)
    return data if isinstance(data, dict) else {}
