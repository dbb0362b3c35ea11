"""A small DNABERT saved as its publisher saves one, and a reference implementation.

The reference is only for comparison: a padded batch, a loop over heads, every operation spelled
out, and the slopes as numbers. It shares no code with `embed`.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

SIZE: dict[str, Any] = {
    "vocab_size": 200,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 12,
    "intermediate_size": 80,
}
PUBLISHED: dict[str, Any] = {
    "_name_or_path": "zhihan1996/DNABERT-2-117M",
    "alibi_starting_size": 512,
    "architectures": ["BertModel"],
    "attention_probs_dropout_prob": 0.0,
    "auto_map": {"AutoModel": "bert_layers.BertModel"},
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "model_type": "bert",
    "pad_token_id": 0,
    "position_embedding_type": "absolute",
    "type_vocab_size": 2,
}
SLOPES_12 = [2.0**-n for n in range(1, 9)] + [2.0**-n for n in (0.5, 1.5, 2.5, 3.5)]
PAD = 3


def checkpoint_names(layers: int) -> list[str]:
    """The names of zhihan1996/DNABERT-S's pytorch_model.bin."""
    embeddings = (
        "word_embeddings.weight token_type_embeddings.weight LayerNorm.weight LayerNorm.bias"
    )
    layer = (
        "attention.self.Wqkv.weight attention.self.Wqkv.bias attention.output.dense.weight "
        "attention.output.dense.bias attention.output.LayerNorm.weight "
        "attention.output.LayerNorm.bias mlp.gated_layers.weight mlp.wo.weight mlp.wo.bias "
        "mlp.layernorm.weight mlp.layernorm.bias"
    )
    return [
        *(f"embeddings.{name}" for name in embeddings.split()),
        *(f"encoder.layer.{n}.{name}" for n in range(layers) for name in layer.split()),
        "pooler.dense.weight",
        "pooler.dense.bias",
    ]


def write_model(folder: Path, **size: Any) -> dict[str, torch.Tensor]:
    """Write config.json, tokenizer.json and pytorch_model.bin; return the weights."""
    config = {**PUBLISHED, **SIZE, **size}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder / "tokenizer.json", config["vocab_size"])
    weights = random_weights(config)
    torch.save(weights, folder / "pytorch_model.bin")
    return weights


def random_weights(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return weights large enough that attention, position and both norms matter."""
    d, inner = config["hidden_size"], config["intermediate_size"]
    rng = torch.Generator().manual_seed(11)
    shapes = {
        "word_embeddings.weight": (config["vocab_size"], d),
        "token_type_embeddings.weight": (2, d),
        "Wqkv.weight": (3 * d, d),
        "Wqkv.bias": (3 * d,),
        "dense.weight": (d, d),
        "gated_layers.weight": (2 * inner, d),
        "wo.weight": (d, inner),
    }
    weights = {}
    for name in checkpoint_names(config["num_hidden_layers"]):
        shape = next((s for end, s in shapes.items() if name.endswith(end)), (d,))
        noise = torch.randn(shape, generator=rng) * (1.4 / math.sqrt(d) if len(shape) > 1 else 0.1)
        is_scale = name.lower().endswith("layernorm.weight")
        weights[name] = noise + 1.0 if is_scale else noise
    return weights


def write_tokenizer(path: Path, vocabulary: int) -> None:
    """Train a BPE tokenizer on random DNA; save it with the padding and truncation published."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    rng = random.Random(5)
    motifs = ["".join(rng.choices("ACGT", k=6)) for _ in range(60)]
    text = ["".join(rng.choices(motifs, k=50)) for _ in range(300)]
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    tokenizer.train_from_iterator(
        text,
        trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=special, show_progress=False),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.enable_padding(pad_id=PAD, pad_token="[PAD]", length=2000)
    tokenizer.enable_truncation(2000)
    assert tokenizer.get_vocab_size() == vocabulary
    tokenizer.save(str(path))


def reference_states(
    weights: dict[str, torch.Tensor],
    config: dict[str, Any],
    batch: Sequence[Sequence[int]],
    *,
    masked: bool = True,
    swapped: bool = False,
    biased: bool = True,
) -> list[torch.Tensor]:
    """Return the last states of each sequence of ids, with [CLS] and [SEP] included in the ids.

    `masked=False`, `swapped=True` and `biased=False` make one mistake each.
    """
    heads = config["num_attention_heads"]
    longest = max(map(len, batch))
    ids = torch.tensor([[*row, *([PAD] * (longest - len(row)))] for row in batch])
    real = torch.tensor([[n < len(row) for n in range(longest)] for row in batch])

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scale = torch.sqrt((centred**2).mean(-1, keepdim=True) + config["layer_norm_eps"])
        return centred / scale * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    types = torch.zeros_like(ids)
    x = weights["embeddings.word_embeddings.weight"][ids]
    x = norm(x + weights["embeddings.token_type_embeddings.weight"][types], "embeddings.LayerNorm")
    distance = torch.tensor([[abs(i - j) for j in range(longest)] for i in range(longest)])
    for n in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{n}."
        qkv = x @ weights[at + "attention.self.Wqkv.weight"].T
        query, key, value = (qkv + weights[at + "attention.self.Wqkv.bias"]).chunk(3, dim=-1)
        views = []
        for head, slope in enumerate(SLOPES_12[:heads]):
            size = x.shape[-1] // heads
            part = slice(head * size, (head + 1) * size)
            scores = query[..., part] @ key[..., part].mT / math.sqrt(size)
            scores = scores - slope * distance if biased else scores
            if masked:
                scores = scores.masked_fill(~real[:, None, :], -torch.inf)
            portion = torch.exp(scores - scores.amax(-1, keepdim=True))
            views.append(portion / portion.sum(-1, keepdim=True) @ value[..., part])
        y = torch.cat(views, -1) @ weights[at + "attention.output.dense.weight"].T
        y = y + weights[at + "attention.output.dense.bias"]
        x = norm(x + y, at + "attention.output.LayerNorm")
        first, second = (x @ weights[at + "mlp.gated_layers.weight"].T).chunk(2, dim=-1)
        gate, up = (second, first) if swapped else (first, second)
        y = 0.5 * gate * (1 + torch.erf(gate / math.sqrt(2))) * up
        y = y @ weights[at + "mlp.wo.weight"].T + weights[at + "mlp.wo.bias"]
        x = norm(x + y, at + "mlp.layernorm")
    return [states[: len(row)] for states, row in zip(x, batch, strict=True)]
