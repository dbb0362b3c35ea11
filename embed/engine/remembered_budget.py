"""Remember how many tokens a launch has on a card, so that the next process need not find it again.

One small file in the user's cache directory for each card model, share of the card, model, plan's
batch and version of PyTorch. Best effort: a home that is full, missing or read-only costs a line in
the debug log. What is read is checked like input from a stranger, and at worst too large, which the
engine survives: it divides what does not fit.

What this module does not know: how budgets are found.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from fsqueue import PoolError
from fsqueue.storage import atomic

FORMAT: Final = 1
SIZE_MAX: Final = 4096
"""Bytes of a file."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BudgetKey:
    """What a budget depends on."""

    card: str
    """Its model, as the driver calls it."""
    workers: int
    """How many workers share it."""
    weights: str
    """The hash of the model's."""
    dtype: str
    tokens_per_batch: int
    """The plan's."""
    torch: str
    """The version."""

    def path(self, environ: Mapping[str, str] = os.environ) -> str | None:
        """Return the file of this key; None where the user has no cache directory."""
        folder = cache_directory(environ)
        text = json.dumps(asdict(self), sort_keys=True)
        name = hashlib.sha256(text.encode()).hexdigest()[:32]
        return folder and f"{folder}/fsqueue/budgets/{name}.json"


def cache_directory(environ: Mapping[str, str] = os.environ) -> str | None:
    """Return $XDG_CACHE_HOME, or ~/.cache; None if neither is an absolute path."""
    given = environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(given):
        return given
    home = os.path.expanduser("~")
    return f"{home}/.cache" if os.path.isabs(home) else None


def recall(key: BudgetKey, tokens_max: int) -> int | None:
    """Return the tokens of a launch that were found for a key; None if there is nothing usable.

    They are the plan's batch, doubled some times, and at most `tokens_max`.
    """
    path = key.path()
    if path is None:
        return None
    try:
        found = json.loads(atomic.read(path, patience_s=0.0, limit=SIZE_MAX))
    except (OSError, PoolError, ValueError, RecursionError) as error:
        log.debug("no number of tokens is remembered: %s", error)
        return None
    if not _is_usable(found, key, tokens_max):
        log.debug("ignored a remembered number of tokens: %s does not hold what it should", path)
        return None
    return int(found["tokens"])


def _is_usable(found: Any, key: BudgetKey, tokens_max: int) -> bool:
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        return False
    tokens = found.get("tokens")
    if type(tokens) is not int or found.get("key") != asdict(key):
        return False
    times, rest = divmod(tokens, key.tokens_per_batch)
    is_doubled = rest == 0 and times > 0 and times & (times - 1) == 0
    return is_doubled and (times == 1 or tokens <= tokens_max)


def remember(key: BudgetKey, tokens: int) -> None:
    """Keep the tokens of a launch that were found for a key, if that is possible."""
    path = key.path()
    if path is None:
        return
    held = {"format": FORMAT, "key": asdict(key), "tokens": tokens}
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        atomic.replace(path, json.dumps(held, indent=1).encode())
    except (OSError, ValueError) as error:
        log.debug("the number of tokens of a launch cannot be remembered: %s: %s", path, error)
