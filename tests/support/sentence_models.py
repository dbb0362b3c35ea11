"""Folders of small random models, saved by sentence-transformers itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling

from tests.support import generic_models

BERT_TOKENIZER = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
    "model_max_length": 64,
}


def write_model(
    folder: Path,
    *,
    pooling: str | Sequence[str] = "mean",
    dense: Sequence[int] = (),
    norm: bool = False,
    normalize: bool = False,
    include_prompt: bool = True,
    prompts: dict[str, str] | None = None,
    default_prompt: str | None = None,
    legacy: bool = False,
    truncate_dim: int | None = None,
) -> SentenceTransformer:
    """Save a small BERT with these modules after it; return the model that was saved.

    `legacy` writes modules.json and the pooling as versions before 5 did.
    """
    plain = generic_models.write_model(folder.parent / f"{folder.name}-plain", "bert")
    (plain / "tokenizer_config.json").write_text(json.dumps(BERT_TOKENIZER))
    transformer = Transformer(str(plain))
    modes = (pooling,) if isinstance(pooling, str) else tuple(pooling)
    modules: list[Any] = [transformer, Pooling(32, modes, include_prompt=include_prompt)]
    width = 32 * len(modes)
    torch.manual_seed(5)
    for size in dense:
        modules.append(Dense(width, size))
        width = size
    if norm:
        modules.append(LayerNorm(width))
        torch.nn.init.normal_(modules[-1].norm.weight)
    if normalize:
        modules.append(Normalize())
    model = SentenceTransformer(
        modules=modules, prompts=prompts, default_prompt_name=default_prompt, device="cpu",
        truncate_dim=truncate_dim,
    )  # fmt: skip
    model.eval().save(str(folder))
    if legacy:
        _write_legacy(folder, modes)
    return model


def _write_legacy(folder: Path, modes: Sequence[str]) -> None:
    path = folder / "modules.json"
    modules = json.loads(path.read_text())
    for module in modules:
        module["type"] = f"sentence_transformers.models.{module['type'].rsplit('.', 1)[-1]}"
    path.write_text(json.dumps(modules))
    names = {
        "cls": "cls_token",
        "mean": "mean_tokens",
        "max": "max_tokens",
        "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
        "weightedmean": "weightedmean_tokens",
        "lasttoken": "lasttoken",
    }
    flags = {f"pooling_mode_{flag}": mode in modes for mode, flag in names.items()}
    facts = {"word_embedding_dimension": 32, **flags}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(facts))
