"""Names of models: aliases, and the model that a word in a service's path stands for.

Registered as an entry point of `fsqueue.models`, so that scores can compare models without fsqueue
knowing any of them.
"""

from __future__ import annotations

from typing import Final

_ALIASES: Final = {"nomic-embed": "nomic-embed-text"}
_MODEL_OF: Final = {
    "ocr": "llama-vision",
    "vision": "llama-vision",
    "embed": "nomic-embed-text",
    "embedding": "nomic-embed-text",
    "embeddings": "nomic-embed-text",
    "rag": "llama3.2",
    "query": "llama3.2",
    "vllm": "llama3.2",
    "generate": "llama3.2",
    "dnabert": "dnabert-s",
    "esm": "esm2-3b",
}


def aliases() -> dict[str, str]:
    """Return other names of models. `llama3.2-vision` is not here: it is not `llama-vision`."""
    return _ALIASES


def by_service() -> dict[str, str]:
    """Return the model that a word in a service's path stands for, where no model is named."""
    return _MODEL_OF
