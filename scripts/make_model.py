"""Print the name of the model that the demonstration uses, and make it first if need be.

    python scripts/make_model.py DIR

The published `facebook/esm2_t6_8M_UR50D` is taken where the model hub answers within seconds.
Elsewhere DIR is filled with a model of the same shape (6 layers, width 320, 7.4 million parameters)
and random weights: the same work at the same speed, and vectors that mean nothing. One seed gives
one set of bytes, so a demonstration repeated on one machine plans the same claims.

The name is the only line on standard output; what happened, in words, goes to standard error.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

PUBLISHED = "facebook/esm2_t6_8M_UR50D"
HUB = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
HUB_PATIENCE_S = 5.0
DOWNLOAD_PATIENCE_S = 60.0
SEED = 20200101

RANDOM_NOTICE = """\
model: {}
       The model hub did not answer, so this is ESM-2 in the shape of the published 8M model, with
       RANDOM weights: the work and its speed are real, the vectors mean nothing."""

LETTERS = "LAGVSERTIDPKQNFYMHWC"
# The order is the published one: a token's line number is its row in the embedding table.
VOCABULARY = (
    "<cls>",
    "<pad>",
    "<eos>",
    "<unk>",
    *LETTERS,
    *"XBUZO.-",
    "<null_1>",
    "<mask>",
)

SHAPE = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 320,
    "num_hidden_layers": 6,
    "num_attention_heads": 20,
    "intermediate_size": 1280,
    "max_position_embeddings": 1026,
    "mask_token_id": VOCABULARY.index("<mask>"),
    "pad_token_id": VOCABULARY.index("<pad>"),
    "position_embedding_type": "rotary",
    "emb_layer_norm_before": False,
    "token_dropout": True,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "layer_norm_eps": 1e-5,
}


def succeeds_within(patience_s: float, program: str) -> bool:
    """Run a Python program in a separate process: only a kill ends a name look-up that hangs."""
    command = [sys.executable, "-c", program]
    try:
        return subprocess.run(command, timeout=patience_s, capture_output=True).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def fetch_published() -> bool:
    """Bring the published model into the hub's own cache; return whether it is complete."""
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in {"1", "ON", "YES", "TRUE"}:
        return False
    address = f"{HUB}/{PUBLISHED}/resolve/main/config.json"
    answers = f"import urllib.request as u; u.urlopen({address!r}, timeout={HUB_PATIENCE_S})"
    files = [
        "config.json",
        "model.safetensors",
        "vocab.txt",
        "tokenizer_config.json",
        "special_tokens_map.json",
    ]
    download = (
        f"import huggingface_hub as h; h.snapshot_download({PUBLISHED!r}, allow_patterns={files!r})"
    )
    return succeeds_within(HUB_PATIENCE_S, answers) and succeeds_within(
        DOWNLOAD_PATIENCE_S, download
    )


def write_random(directory: Path, seed: int = SEED, **shape: int) -> None:
    """Save a seeded model and its tokenizer in `directory`, which appears whole or not at all.

    `shape` replaces parts of SHAPE.
    """
    import torch
    from transformers import EsmConfig, EsmForMaskedLM, EsmTokenizer, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".model-") as private:
        vocabulary = Path(private, "vocab.txt")
        vocabulary.write_text("\n".join(VOCABULARY))
        whole = Path(private, "whole")
        torch.manual_seed(seed)
        # With the language-model head, as published: readers must skip it.
        EsmForMaskedLM(EsmConfig(**{**SHAPE, **shape})).eval().save_pretrained(whole)
        EsmTokenizer(str(vocabulary), model_max_length=1024).save_pretrained(whole)
        whole.rename(directory)


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python scripts/make_model.py DIR")
    directory = Path(sys.argv[1]).resolve()
    if not directory.exists() and fetch_published():
        print(f"model: {PUBLISHED}, from the model hub", file=sys.stderr)
        print(PUBLISHED)
        return
    if not directory.exists():
        write_random(directory)
    print(RANDOM_NOTICE.format(directory), file=sys.stderr)
    print(directory)


if __name__ == "__main__":
    main()
