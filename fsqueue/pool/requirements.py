"""Parse and compose a claim's kind: which workers may take it.

A kind is `BASE` or `BASE--CONDITIONS`, as in `esm2_3b--t1-fp8` or `merge--t3`. `BASE` is what a
worker must have loaded. A condition `t1`, `t2` or `t3` is the lowest tier that may take it, by
default t2; any other condition is a capability that the worker must have. They are part of the
name because a thief decides by names alone.

A worker may take work of its own tier and of lower ones: a GPU worker may do storage work, but not
the reverse.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from enum import IntEnum
from functools import lru_cache
from typing import Final

from fsqueue.errors import UsageError
from fsqueue.pool.names import KIND

CAPABILITY: Final = re.compile(r"[a-z0-9_]{1,20}", re.ASCII)
_TIER: Final = re.compile(r"t([123])", re.ASCII)


class Tier(IntEnum):
    """What a worker runs on. It may take work of its own tier and of those below."""

    GPU = 1
    CPU = 2
    STORAGE = 3


TIER_NAMES: Final = tuple(tier.name.lower() for tier in Tier)


def tier_named(name: str) -> Tier:
    """Return the tier of this name; UsageError if there is none."""
    if name not in TIER_NAMES:
        raise UsageError(f"{name!r} is not a tier; a tier is one of {', '.join(TIER_NAMES)}.")
    return Tier[name.upper()]


def compose(base: str, tier: int = Tier.CPU, requires: Iterable[str] = ()) -> str:
    """Return the kind of claims with these conditions; UsageError if it would not be valid."""
    words = [f"t{int(tier)}"] if tier != Tier.CPU else []
    for capability in sorted({word.lower() for word in requires}):
        if not CAPABILITY.fullmatch(capability) or _TIER.fullmatch(capability):
            raise UsageError(
                f"{capability!r} is not a valid capability: use letters, digits and _."
            )
        words.append(capability)
    kind = "--".join([base, "-".join(words)]) if words else base
    if not KIND.fullmatch(kind):
        raise UsageError(f"the kind {kind!r} is too long; require fewer or shorter capabilities.")
    return kind


def requiring(kind: str, capability: str) -> str:
    """Return a kind with one more condition; UsageError if it would not be valid."""
    tier, requires = conditions(kind)
    return compose(base_of(kind), tier, requires | {capability})


def base_of(kind: str) -> str:
    """Return what must be loaded."""
    return kind.partition("--")[0]


@lru_cache(maxsize=1024)
def conditions(kind: str) -> tuple[int, frozenset[str]]:
    """Return the lowest tier that may take a kind, and the capabilities it requires."""
    words = kind.partition("--")[2].split("-")
    tiers = [int(match[1]) for word in words if (match := _TIER.fullmatch(word))]
    requires = frozenset(word for word in words if word and not _TIER.fullmatch(word))
    return min(tiers, default=Tier.CPU), requires


def lacks(kind: str, tier: int, capabilities: Collection[str]) -> str:
    """Return why a worker may not take a kind, "" if it may."""
    lowest, requires = conditions(kind)
    if tier > lowest:
        return f"it is for tier {lowest} and better, and the worker's is {tier}"
    missing = sorted(requires.difference(capabilities))
    return f"the worker lacks the capability {', '.join(missing)}" if missing else ""
