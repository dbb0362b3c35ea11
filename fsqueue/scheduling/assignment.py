"""Share work out over unequal GPUs, each GPU's part in proportion to its weight.

A weight is a throughput, RTX 3090 = 1.0: a GPU of weight 1.5 gets 1.5 times the work of one of
weight 1.0, so that both finish together.

What is promised: the shares depend on costs, weights and their order alone; no file is ever split;
with equal weights this is plain bin packing, largest first. A greedy assignment is at most one item
away from balance, so plan several claims per GPU: with two, a 3090 and a 4090 end 25 % late.
"""

from __future__ import annotations

import heapq
import logging
import math
from array import array
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Final, TypeVar

from fsqueue.gpu.weights import DEFAULT_WEIGHT, short_name

T = TypeVar("T")
log = logging.getLogger(__name__)

RUN: Final = 1 << 16
"""How many costs are sorted at a time."""


def assign(
    costs: Sequence[float], weights: Sequence[float], loads: Sequence[float] | None = None
) -> list[int]:
    """Return the slot of each item: largest first, each to the slot that would finish it first.

    A slot would finish at (its load + this cost) / its weight. Counting the item itself matters: a
    lone item goes to the fastest slot, not to the first. Ties go to the lowest slot, and items of
    equal cost keep their order. `loads` is the cost that already waits in each slot. Raises
    ValueError for negative costs, weights that are not positive, or loads of another length.
    """
    loads = [0] * len(weights) if loads is None else loads
    _check(costs, weights, loads)
    # Among slots of one weight the least loaded is best for any cost, so one heap per weight is
    # enough: n log n for thousands of slots, as long as there are few models.
    heaps: dict[float, list[tuple[float, int]]] = {}
    for slot, weight in enumerate(weights):
        heaps.setdefault(weight, []).append((loads[slot], slot))
    for heap in heaps.values():
        heapq.heapify(heap)

    slots = [0] * len(costs)
    for item in _largest_first(costs):
        cost = costs[item]
        _, slot, weight = min(
            ((heap[0][0] + cost) / weight, heap[0][1], weight) for weight, heap in heaps.items()
        )
        heap = heaps[weight]
        heapq.heapreplace(heap, (heap[0][0] + cost, slot))
        slots[item] = slot
    return slots


def _largest_first(costs: Sequence[float]) -> Iterator[int]:
    """Return the indices by descending cost, sorted in runs: a million take 4 MB, not 70."""
    runs = []
    for begin in range(0, len(costs), RUN):
        items = range(begin, min(begin + RUN, len(costs)))
        runs.append(array("L", sorted(items, key=costs.__getitem__, reverse=True)))
    return heapq.merge(*runs, key=costs.__getitem__, reverse=True)


def _check(costs: Sequence[float], weights: Sequence[float], loads: Sequence[float]) -> None:
    if len(loads) != len(weights):
        raise ValueError(f"Expected {len(weights)} loads, got {len(loads)}")
    if costs and not weights:
        raise ValueError(f"{len(costs)} items and no slot to put them in")
    for weight in weights:
        if not (weight > 0 and math.isfinite(weight)):
            raise ValueError(f"weights must be positive and finite, got {weight}")
    for cost in chain(costs, loads):
        if not (cost >= 0 and math.isfinite(cost)):
            raise ValueError(f"costs and loads must be finite and not negative, got {cost}")


def assign_files_weighted(
    files: Sequence[T],
    num_workers: int,
    gpu_weights: Sequence[float] | None = None,
    *,
    cost: Callable[[T], float],
    names: Sequence[str] | None = None,
) -> list[list[T]]:
    """Return each worker's files, its share of the total cost proportional to its weight.

    `cost` is called once per file. Without `gpu_weights` all workers are equal. `names` are the
    GPUs' models, for the log only. A worker's files come largest first; a worker may get none.
    """
    if num_workers <= 0:
        raise ValueError(f"num_workers must be positive, got {num_workers}")
    weights = [DEFAULT_WEIGHT] * num_workers if gpu_weights is None else list(gpu_weights)
    if len(weights) != num_workers:
        raise ValueError(f"Expected {num_workers} weights, got {len(weights)}")
    if names is not None and len(names) != num_workers:
        raise ValueError(f"Expected {num_workers} names, got {len(names)}")
    costs = [cost(file) for file in files]
    slots = assign(costs, weights)
    shares: list[list[T]] = [[] for _ in weights]
    totals: list[float] = [0] * num_workers
    for item in _largest_first(costs):
        shares[slots[item]].append(files[item])
        totals[slots[item]] += costs[item]
    _log_shares([len(share) for share in shares], totals, weights, names)
    return shares


def _log_shares(
    counts: Sequence[int],
    totals: Sequence[float],
    weights: Sequence[float],
    names: Sequence[str] | None,
) -> None:
    for slot, (count, total, weight) in enumerate(zip(counts, totals, weights, strict=True)):
        model = f"{short_name(names[slot])}, " if names else ""
        log.info(f"GPU {slot} ({model}weight={weight:.2f}): {count} files, {total:.0f} sequences")
    ends = [total / weight for total, weight in zip(totals, weights, strict=True)]
    spread = 100 * (max(ends) - min(ends)) / max(ends) if any(ends) else 0.0
    log.info(f"Sequences per unit of weight: {min(ends):.0f} to {max(ends):.0f} ({spread:.1f} %)")
