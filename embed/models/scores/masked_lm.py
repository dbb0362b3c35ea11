"""Find out, when a plan is made, whether a model can score sequences: by its masked-LM head.

The head turns the last state of a token into the probabilities of all tokens. Most checkpoints of
BERT's and ESM's kind have one; those made for embedding usually do not. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Final

from embed.models.conventions.convention import Convention
from embed.models.esm2.tokenizer import VOCABULARY
from embed.models.families import Tokenizer
from embed.models.generic.tokenizer import GenericTokenizer
from embed.models.published import files
from embed.outputs.safetensors_header import read_shapes
from fsqueue import UsageError

WITHOUT_COLUMNS: Final = ("esm", "virnucpro")
MASK_TOKENS: Final = ("<mask>", "[MASK]")


class Scores(StrEnum):
    """How the probability of each token of a sequence is computed."""

    ONE_PASS = "one-pass"
    """All at once, each token seen: nearly the same order of sequences, for no extra cost."""
    MASKED = "masked"
    """Each token masked in turn: as many passes as the sequence has tokens."""

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Scores | None:
        """Return how a plan with these options scores; None if it does not."""
        return cls(options["scores"]) if options.get("scores") else None


def check_scores(
    folder: str,
    family: str,
    config: Mapping[str, Any],
    tokenizer: Tokenizer | None,
    convention: Convention,
    options: Mapping[str, Any],
) -> None:
    """Raise UsageError if --scores is asked for, and cannot be had."""
    scores = Scores.of(options)
    if scores is None:
        return
    if convention.per_token or options.get("text") or options.get("overlap"):
        other = "--text" if options.get("text") else "--overlap"
        other = "--pooling per-token" if convention.per_token else other
        raise UsageError(
            f"--scores with {other}: a score belongs to a whole sequence, each of whose tokens "
            f"counts once. Plan the scores separately."
        )
    if options["format"] in WITHOUT_COLUMNS:
        raise UsageError(
            f"--format {options['format']}: these files hold vectors only, and --scores writes a "
            f"number beside each. Use safetensors, npz, h5 or parquet."
        )
    if not _has_head(folder, family, config):
        raise UsageError(
            f"--scores: {folder} has no masked-LM head, which says how likely each token is; "
            f"models made for embedding often leave it out, and decoders and T5 have none. Give "
            f"the checkpoint that it was trained from, or leave out --scores."
        )
    if scores is Scores.MASKED:
        mask_token(family, tokenizer)


def _has_head(folder: str, family: str, config: Mapping[str, Any]) -> bool:
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    known = config.get("model_type") in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if family == "dnabert" or not known or config.get("is_encoder_decoder"):
        return False
    return any(name.startswith(files.HEADS) for name in _tensors(folder, config))


def _tensors(folder: str, config: Mapping[str, Any]) -> Sequence[str]:
    """Return the names of a model's weights; of a pickle, which is not read here, what its
    configuration promises."""
    names: list[str] = []
    for path in files.weight_files(folder):
        if path.endswith(".bin"):
            architectures = config.get("architectures") or []
            return files.HEADS if any("MaskedLM" in str(each) for each in architectures) else ()
        with open(path, "rb") as file:
            names += read_shapes(file.fileno())
    return names


def mask_token(family: str, tokenizer: Tokenizer | None) -> int:
    """Return the id of the token that stands for any. Raises UsageError if there is none."""
    if family == "esm2":
        return VOCABULARY.index("<mask>")
    if isinstance(tokenizer, GenericTokenizer):
        for token in MASK_TOKENS:
            if tokenizer.has_token(token):
                return tokenizer.id_of(token)
    raise UsageError(
        "--scores masked: this model's vocabulary has no mask token (<mask> or [MASK]). Use "
        "--scores one-pass."
    )
