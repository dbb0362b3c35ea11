"""Attention inside each sequence of a packed batch, for the models of transformers.

transformers lets an attention function be registered by a name. Ours gets queries, keys and values
of a batch of one row that holds all sequences, and attends inside each. What it may attend to, the
model says in its own way: by a function of two positions, which transformers would make a mask of,
and by a bias that depends on their distance (T5). Both are asked for the longest sequence only, and
cut to the length of each: what holds for two tokens does not depend on where their sequence stands.

What is not understood raises `NotPackable`; whether all was understood is found out by a comparison
when the model is loaded (`network.py`).

One of the doors to torch and transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch.nn import functional

from embed.models.packed.kernels import Kernel, varlen
from embed.models.packed.pack import Pack

NAME: Final = "fsqueue_packed"
CHANGES_SCORES: Final = ("softcap", "s_aux", "sinks", "cache", "block_table")
"""Arguments of an attention function that would have to be heeded, and are not known here."""
ANY: Final = -1


class NotPackable(Exception):
    """A model attends in a way that is not known here."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Which tokens of its sequence a token attends to."""

    left: int
    """How many before it; ANY: all."""
    right: int
    mask: torch.Tensor | None = None
    """(longest, longest), where left and right alone would need one."""

    @property
    def is_causal(self) -> bool:
        return (self.left, self.right) == (ANY, 0)

    @property
    def is_free(self) -> bool:
        return (self.left, self.right) == (ANY, ANY)


FREE: Final = Rule(ANY, ANY)
CAUSAL: Final = Rule(ANY, 0)


@dataclass(slots=True)
class _Scope:
    """The batch that a model is running, and what its masks mean."""

    pack: Pack
    rules: dict[int, tuple[torch.Tensor, Rule]] = field(default_factory=dict)
    """By the identity of the tensor that stands for the mask, which is kept with it."""

    def rule(self, mask: torch.Tensor | None, module: Any, options: dict[str, Any]) -> Rule:
        if mask is not None:
            if id(mask) not in self.rules:
                raise NotPackable("it makes masks of its own")
            return self.rules[id(mask)][1]
        if options.get("sliding_window") is not None:
            raise NotPackable("it has a window, and no mask")
        asked = options.get("is_causal")
        is_causal = getattr(module, "is_causal", False) if asked is None else asked
        return CAUSAL if is_causal else FREE


_SCOPE: Final[ContextVar[_Scope | None]] = ContextVar("scope", default=None)


@contextmanager
def packed(pack: Pack) -> Iterator[None]:
    """Let models that attend by NAME attend inside each sequence of this batch."""
    token = _SCOPE.set(_Scope(pack))
    try:
        yield
    finally:
        _SCOPE.reset(token)


def register() -> None:
    """Make the attention and its masks known to transformers, by NAME."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _mask)


def limit_biases(model: Any) -> bool:
    """Let modules that compute a bias for every two tokens do it for the longest sequence only.

    Returns whether there are any.
    """
    found = [module for module in model.modules() if hasattr(module, "relative_attention_bias")]
    for module in found:
        compute = getattr(module, "compute_bias", None)
        if compute is not None:
            module.compute_bias = _limited(compute)
    return bool(found)


def _limited(compute: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def compute_bias(query_length: int, key_length: int, *rest: Any, **more: Any) -> torch.Tensor:
        scope = _SCOPE.get()
        if scope is not None:
            query_length = key_length = scope.pack.layout.longest
        return compute(query_length, key_length, *rest, **more)

    return compute_bias


def _mask(
    *, mask_function: Callable[..., torch.Tensor], device: torch.device, **_rest: Any
) -> torch.Tensor:
    """Return a tensor that stands for a mask, and remember what it means."""
    scope = _SCOPE.get()
    assert scope is not None, "a model attends by NAME in `packed` only"
    rule = _rule(mask_function, scope.pack.layout.longest)
    if scope.pack.layout.kernel is Kernel.RUNS and not (rule.is_free or rule.is_causal):
        rule = _with_mask(rule, mask_function, scope.pack.layout.longest)
    stands_for = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)
    scope.rules[id(stands_for)] = stands_for, rule
    return stands_for


def _rule(mask_function: Callable[..., torch.Tensor], longest: int) -> Rule:
    """Return the rule that a function of positions follows, by what the first and the last token of
    the longest sequence attend to. All of it is computed on the CPU, so nothing waits."""
    places = torch.arange(longest)
    first, last = (
        mask_function(0, 0, torch.tensor(at), places).expand(longest) for at in (0, longest - 1)
    )
    right, left = int(first.sum()) - 1, int(last.sum()) - 1
    return Rule(*(ANY if side == longest - 1 else side for side in (left, right)))


def _with_mask(rule: Rule, mask_function: Callable[..., torch.Tensor], longest: int) -> Rule:
    places = torch.arange(longest)
    whole = mask_function(0, 0, places[:, None], places[None, :]).expand(longest, longest)
    if not torch.equal(whole, _band(rule, longest)):
        raise NotPackable("its tokens do not all attend to as many before and after them")
    return Rule(rule.left, rule.right, whole)


def _band(rule: Rule, longest: int) -> torch.Tensor:
    places = torch.arange(longest)
    ahead = places[None, :] - places[:, None]
    mask = torch.ones(longest, longest, dtype=torch.bool)
    if rule.right != ANY:
        mask &= ahead <= rule.right
    if rule.left != ANY:
        mask &= ahead >= -rule.left
    return mask


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    position_bias: torch.Tensor | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attend, (1, heads, tokens, d) each, to (1, tokens, heads, d)."""
    scope = _SCOPE.get()
    assert scope is not None, "a model attends by NAME in `packed` only"
    for name in CHANGES_SCORES:
        if options.get(name) is not None:
            raise NotPackable(f"its scores are changed by {name}")
    rule = scope.rule(attention_mask, module, options)
    q, k, v = (each[0].transpose(0, 1) for each in (query, key, value))
    pack = scope.pack
    if pack.layout.kernel is Kernel.VARLEN:
        if position_bias is not None:
            raise NotPackable("it adds a bias to its scores")
        band = (rule.left, rule.right)
        return varlen(q, k, v, pack.bounds, pack.layout.longest, scaling, band)[None], None
    return _attend_in_runs(q, k, v, pack, rule, scaling, position_bias)[None], None


def _attend_in_runs(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    pack: Pack,
    rule: Rule,
    scale: float | None,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """Attend by a call for every run of sequences of equal length, (tokens, heads, d) each."""
    dtype = pack.scores_dtype(v)
    output = torch.empty(*q.shape[:2], v.shape[-1], dtype=v.dtype, device=v.device)
    grouped = q.shape[1] != k.shape[1]
    q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    added = None if bias is None else _added(bias.to(dtype), rule, pack.layout.longest)
    mask = rule.mask if added is None else added
    for start, count, length in pack.runs:
        stop = start + count * length
        queries, keys, values = (
            each[start:stop].unflatten(0, (count, length)).transpose(1, 2) for each in (q, k, v)
        )
        attended = functional.scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=None if mask is None else mask[..., :length, :length],
            is_causal=mask is None and rule.is_causal,
            scale=scale,
            enable_gqa=grouped,
        )
        output[start:stop] = attended.transpose(1, 2).flatten(0, 1)
    return output


def _added(bias: torch.Tensor, rule: Rule, longest: int) -> torch.Tensor:
    """Return what is added to the scores: the bias, and -inf where a token does not attend."""
    if bias.shape[-2:] != (longest, longest):
        raise NotPackable("it computes its bias in a way of its own")
    if rule.is_free:
        return bias
    return bias.masked_fill(~_band(rule, longest), float("-inf"))
