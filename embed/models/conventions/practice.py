"""Decide what "the embedding" of a model is, from its files and the user's options.

In this order: what the user asks for; what a sentence-transformers folder says (`modules_json.py`);
what the model's authors and the users of its kind compute. The plan prints the decision and where
it comes from.

What this module does not know: torch, and how states are pooled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from embed.models.conventions import modules_json
from embed.models.conventions.convention import Convention, Layers, Mode
from embed.models.conventions.modules_json import SentenceModel
from embed.models.cost import LAYERS
from embed.models.generic.tokenizer import GenericTokenizer
from fsqueue import UsageError

NUCLEOTIDE_TRANSFORMER: Final = ("esm", "nt")
"""`model_type`s of encoders that, with a vocabulary of DNA, are Nucleotide Transformers."""
PREFIXES: Final = ("<AA2fold>", "[NLU]")
"""Tokens that ProstT5 and Ankh 3 were trained with before a protein; each is in one vocabulary."""


@dataclass(frozen=True, slots=True)
class Practice:
    """A convention, and why it is this one."""

    convention: Convention
    reason: str
    """Where it comes from: "from modules.json"."""
    notes: Sequence[str] = ()
    """What a user should know about it."""
    prompts: Mapping[str, str] = field(default_factory=dict)

    @property
    def line(self) -> str:
        """Return what a plan prints."""
        return f"pooling: {self.convention.describe()} ({self.reason})"


def decide(
    folder: str, family: str, config: Mapping[str, Any], tokenizer: Any, options: Mapping[str, Any]
) -> Practice:
    """Return the convention of the model in `folder` under a plan's options.

    `tokenizer` is its tokenizer, if it is of no family of its own. Raises UsageError.
    """
    sentences = modules_json.read(folder)
    usual = _usual(sentences, family, config, tokenizer)
    return _asked(usual, sentences, family, config, tokenizer, options)


# ---- what is usual ----


def _usual(
    sentences: SentenceModel | None, family: str, config: Mapping[str, Any], tokenizer: Any
) -> Practice:
    if sentences is not None:
        return _of_sentences(sentences)
    if family == "esm2":
        return Practice(Convention((Mode.MEAN,)), "as in extract.py")
    if family == "dnabert":
        return Practice(Convention((Mode.MEAN_ALL,)), "as its authors do")
    if isinstance(tokenizer, GenericTokenizer) and not tokenizer.reads_text:
        return _of_residues(config, tokenizer)
    if _is_decoder(config):
        return Practice(Convention((Mode.LAST,)), "usual for decoders")
    return Practice(Convention((Mode.MEAN_ALL,)), "usual for texts; it has no modules.json")


def _of_sentences(sentences: SentenceModel) -> Practice:
    convention = sentences.convention
    if sentences.default_prompt is not None:
        convention = replace(convention, prefix=sentences.prompts[sentences.default_prompt])
    notes = []
    if sentences.prompts and not convention.prefix:
        notes.append(
            f"this model has prompts ({', '.join(sentences.prompts)}), and none is used unless "
            f"you choose one: --prompt {next(iter(sentences.prompts))}"
        )
    reason = f"from {modules_json.MODULES_JSON}"
    return Practice(convention, reason, notes, sentences.prompts)


def _of_residues(config: Mapping[str, Any], tokenizer: GenericTokenizer) -> Practice:
    if config.get("model_type") in NUCLEOTIDE_TRANSFORMER and not tokenizer.reads_proteins:
        return Practice(Convention((Mode.MEAN_ALL,)), "as its authors do")
    if _is_decoder(config):
        return Practice(Convention((Mode.LAST,)), "usual for decoders")
    prefix = next((each for each in PREFIXES if tokenizer.has_token(each)), "")
    letters = "proteins" if tokenizer.reads_proteins else "DNA"
    convention = Convention((Mode.MEAN,), prefix=prefix, pools_prefix=False)
    return Practice(convention, f"usual for {letters}")


def _is_decoder(config: Mapping[str, Any]) -> bool:
    """Return whether each token sees only those before it, so that only the last has seen all."""
    from transformers.models.auto import modeling_auto as auto

    if config.get("use_bidirectional_attention") or config.get("is_causal") is False:
        return False
    if config.get("is_decoder") and not config.get("is_encoder_decoder"):
        return True
    kind = config.get("model_type")
    causal = kind in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return causal and kind not in (
        *auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        *auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    )


# ---- what was asked for ----


def _asked(
    usual: Practice,
    sentences: SentenceModel | None,
    family: str,
    config: Mapping[str, Any],
    tokenizer: Any,
    options: Mapping[str, Any],
) -> Practice:
    convention, by = usual.convention, []
    notes, dropped = list(usual.notes), ""
    if options.get("layers"):
        last = next((int(config[name]) for name in LAYERS if config.get(name)), None)
        if last is None:
            raise UsageError(f"--layers: {family}'s config.json does not say how many it has.")
        convention = replace(convention, layers=Layers.parse(options["layers"], last))
        by.append("--layers")
        dropped = "--layers" if convention.layers.parts > 1 else ""
    if options.get("pooling"):
        mode = _mode(options["pooling"], family)
        if mode is Mode.CLS and isinstance(tokenizer, GenericTokenizer) and not tokenizer.edges[0]:
            raise UsageError(
                "--pooling cls: this model's inputs have no token before the text, so there is no "
                "CLS. Use mean, or last."
            )
        if len(convention.modes) > 1 or mode is Mode.PER_TOKEN:
            dropped = "--pooling"
        convention = replace(convention, modes=(mode,))
        by.append("--pooling")
        if mode is Mode.PER_TOKEN:
            convention = replace(convention, normalize=False, dimensions=0)
    if dropped and convention.head:
        convention = replace(convention, head=())
        notes.append(
            f"{dropped}: the modules that follow pooling in modules.json are left out, because "
            f"they fit its own pooling only"
        )
    if options.get("normalize") is not None:
        convention = replace(convention, normalize=options["normalize"])
        by.append("--normalize" if options["normalize"] else "--no-normalize")
    if (prefix := _prefix(sentences, family, options)) is not None:
        convention = replace(convention, prefix=prefix)
        by.append("--prompt" if options.get("prompt") else "--prefix")
        notes = [line for line in notes if "--prompt" not in line]
    kept = f"{usual.reason}; " if by else usual.reason
    reason = f"{kept}{', '.join(by)}" if by else kept
    return Practice(convention, reason, notes, usual.prompts)


def _mode(name: str, family: str) -> Mode:
    """Return the mode that --pooling names.

    DNABERT's mean is over all tokens, as its authors' training, evaluation and example do.
    """
    return Convention.legacy(name, family).modes[0] if family == "dnabert" else Mode(name)


def _prefix(sentences: SentenceModel | None, family: str, options: Mapping[str, Any]) -> str | None:
    prefix, name = options.get("prefix"), options.get("prompt")
    if prefix is None and name is None:
        return None
    if prefix is not None and name is not None:
        raise UsageError("--prefix and --prompt: give one of them; a prompt is a named prefix.")
    if family != "auto":
        what = "residues" if family == "esm2" else "bases"
        raise UsageError(
            f"{'--prefix' if name is None else '--prompt'}: {family} reads {what} only, and has no "
            f"prefixes. Leave it out."
        )
    if name is None:
        return str(prefix)
    prompts = sentences.prompts if sentences else {}
    if name not in prompts:
        has = f"it has {', '.join(prompts)}" if prompts else "it has none"
        raise UsageError(
            f"--prompt {name}: the model has no prompt of this name ({has}, in "
            f"{modules_json.PROMPTS_JSON}). Give the text itself: --prefix TEXT"
        )
    return prompts[name]
