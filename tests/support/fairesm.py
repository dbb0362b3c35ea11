"""fair-esm 2.0.0, the publisher's own ESM-2, to compare with: one set of weights for both.

Only tests import fair-esm. Its model is saved as in its publisher's hub folders: the names of
`facebook/esm2_*`, training heads besides the encoder, `inv_freq` in every layer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import esm
import numpy as np
import torch
from safetensors.torch import save_file

SIZES: dict[str, tuple[int, int, int]] = {
    "esm2_t6_8M_UR50D": (6, 320, 20),
    "esm2_t12_35M_UR50D": (12, 480, 20),
    "esm2_t30_150M_UR50D": (30, 640, 20),
    "esm2_t33_650M_UR50D": (33, 1280, 20),
    "esm2_t36_3B_UR50D": (36, 2560, 40),
    "esm2_t48_15B_UR50D": (48, 5120, 40),
}
"""Layers, width and heads of every published ESM-2."""
TOKENS_PER_BATCH = 4096

LAYER = {
    "self_attn.q_proj": "attention.self.query",
    "self_attn.k_proj": "attention.self.key",
    "self_attn.v_proj": "attention.self.value",
    "self_attn.out_proj": "attention.output.dense",
    "self_attn_layer_norm": "attention.LayerNorm",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
    "final_layer_norm": "LayerNorm",
    "self_attn.rot_emb": "attention.self.rotary_embeddings",
}
OTHERS = {
    "embed_tokens": "esm.embeddings.word_embeddings",
    "emb_layer_norm_after": "esm.encoder.emb_layer_norm_after",
    "contact_head.regression": "esm.contact_head.regression",
    "lm_head.dense": "lm_head.dense",
    "lm_head.layer_norm": "lm_head.layer_norm",
}
SHORT = {"lm_head.bias": "lm_head.bias", "lm_head.weight": "lm_head.decoder.weight"}


def config(layers: int, width: int, heads: int) -> dict[str, Any]:
    """Return the config.json of the published folder of this size."""
    return {
        "architectures": ["EsmForMaskedLM"],
        "attention_probs_dropout_prob": 0.0,
        "classifier_dropout": None,
        "emb_layer_norm_before": False,
        "esmfold_config": None,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "hidden_size": width,
        "initializer_range": 0.02,
        "intermediate_size": 4 * width,
        "is_folding_model": False,
        "layer_norm_eps": 1e-05,
        "mask_token_id": 32,
        "max_position_embeddings": 1026,
        "model_type": "esm",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "pad_token_id": 1,
        "position_embedding_type": "rotary",
        "token_dropout": True,
        "torch_dtype": "float32",
        "use_cache": True,
        "vocab_list": None,
        "vocab_size": 33,
    }


def published_name(name: str) -> str:
    """Return the name of a tensor of fair-esm in the hub's folder."""
    if name in SHORT:
        return SHORT[name]
    stem, _, last = name.rpartition(".")
    if stem.startswith("layers."):
        _, number, part = stem.split(".", 2)
        return f"esm.encoder.layer.{number}.{LAYER[part]}.{last}"
    return f"{OTHERS[stem]}.{last}"


def random_model(name: str, seed: int = 5) -> esm.ESM2:
    """Return fair-esm's model of a published size, its weights random but always the same."""
    layers, width, heads = SIZES[name]
    torch.manual_seed(seed)
    model = esm.ESM2(layers, width, heads, alphabet="ESM-1b").eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms are 0 and 1 initially
            parameter.add_(torch.randn_like(parameter) * 0.02)
        for layer in model.layers:  # as released checkpoints, in half precision
            layer.self_attn.rot_emb.inv_freq.copy_(layer.self_attn.rot_emb.inv_freq.half())
    return model


def save(model: esm.ESM2, name: str, folder: Path) -> Path:
    """Write the model as its publisher's folder on the hub."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config(*SIZES[name])))
    weights = {published_name(k): v.clone() for k, v in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def extract(model: esm.ESM2, sequences: Sequence[str], most: int = 1022) -> np.ndarray:
    """Do what `extract.py --include mean --truncation_seq_length 1022` does; rows in order."""
    converter = model.alphabet.get_batch_converter(most)
    rows: dict[int, np.ndarray] = {}
    for batch in _batches(sequences):
        _, _, tokens = converter([(str(n), sequences[n]) for n in batch])
        with torch.no_grad():
            found = model(tokens, repr_layers=[model.num_layers], return_contacts=False)
        for n, states in zip(batch, found["representations"][model.num_layers], strict=True):
            rows[n] = states[1 : min(most, len(sequences[n])) + 1].mean(0).numpy()
    return np.stack([rows[n] for n in range(len(sequences))])


def _batches(sequences: Sequence[str]) -> Iterator[list[int]]:
    """Yield what `FastaBatchedDataset.get_batch_indices` would: by length, one token extra."""
    batch: list[int] = []
    longest = 0
    for n in sorted(range(len(sequences)), key=lambda n: len(sequences[n])):
        size = len(sequences[n]) + 1
        if batch and max(longest, size) * (len(batch) + 1) > TOKENS_PER_BATCH:
            yield batch
            batch, longest = [], 0
        longest = max(longest, size)
        batch.append(n)
    yield batch
