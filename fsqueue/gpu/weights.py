"""Know the cards: what each is called, and how fast it is beside an RTX 3090.

Names come from drivers and from people: `NVIDIA A100-SXM4-80GB`, `a100-80gb` and `A100` are one
model. They are compared whole, never by substring, after dropping vendor, package and memory size:
`RTX 3060 Laptop GPU` is not an RTX 3060, nor `RTX A1000` an A100, nor a MIG slice its card.
"""

from __future__ import annotations

import difflib
import heapq
import logging
import math
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Final, TypeVar

from fsqueue.gpu import nvml

# A weight is a throughput, RTX 3090 = 1. These nine are given; every other one is an estimate, so
# say `--gpus MODEL:WEIGHT` when you know better.
_GIVEN: Final = {
    "RTX 3080": 0.90,
    "RTX 3090": 1.00,
    "RTX 4080": 1.35,
    "RTX 4090": 1.50,
    "RTX A6000": 1.10,
    "A100": 1.20,
    "H100": 2.50,
    "V100 16GB": 0.75,
    "V100 32GB": 0.80,
}

# NVIDIA's published peaks, each card under the given one that is nearest to it in kind: dense FP16
# tensor TFLOPS with FP32 accumulation (half of what is advertised for GeForce), FP32 TFLOPS without
# tensor cores, memory bandwidth in GB/s. The P100 has no tensor cores: its plain FP16 rate.
_PUBLISHED: Final = {
    "V100 16GB": {
        "V100 16GB": (125.0, 15.7, 900),
        "P100": (21.2, 10.6, 732),
        "T4": (65.0, 8.1, 320),
        "RTX 2060": (25.8, 6.5, 336),
        "RTX 2060 SUPER": (28.7, 7.2, 448),
        "RTX 2070": (29.9, 7.5, 448),
        "RTX 2070 SUPER": (36.3, 9.1, 448),
        "RTX 2080": (40.3, 10.1, 448),
        "RTX 2080 SUPER": (44.6, 11.2, 496),
        "RTX 2080 Ti": (53.8, 13.4, 616),
        "TITAN RTX": (130.5, 16.3, 672),
        "RTX 6000": (130.5, 16.3, 672),  # the Quadro of 2018
        "RTX 8000": (130.5, 16.3, 672),
    },
    "RTX 3090": {
        "RTX 3090": (71.0, 35.6, 936),
        "RTX 3050": (18.2, 9.1, 224),
        "RTX 3060": (25.5, 12.7, 360),
        "RTX 3060 Ti": (32.4, 16.2, 448),
        "RTX 3070": (40.6, 20.3, 448),
        "RTX 3070 Ti": (43.5, 21.7, 608),
        "RTX 3080 Ti": (68.2, 34.1, 912),
        "RTX 3090 Ti": (80.0, 40.0, 1008),
    },
    "RTX A6000": {
        "RTX A6000": (154.8, 38.7, 768),
        "RTX A2000": (31.9, 8.0, 288),
        "RTX A4000": (76.7, 19.2, 448),
        "RTX A4500": (94.6, 23.7, 640),
        "RTX A5000": (111.1, 27.8, 768),
        "A10": (125.0, 31.2, 600),
        "A10G": (70.0, 35.0, 600),
        "A40": (149.7, 37.4, 696),
    },
    "A100": {
        "A100": (312.0, 19.5, 1555),
        "A30": (165.0, 10.3, 933),
    },
    "RTX 4080": {
        "RTX 4080": (97.5, 48.7, 717),
        "RTX 4060": (30.2, 15.1, 272),
        "RTX 4060 Ti": (44.1, 22.1, 288),
        "RTX 4070": (58.3, 29.1, 504),
        "RTX 4070 SUPER": (70.9, 35.5, 504),
        "RTX 4070 Ti": (80.2, 40.1, 504),
        "RTX 4070 Ti SUPER": (88.2, 44.1, 672),
        "RTX 4080 SUPER": (104.4, 52.2, 736),
        "RTX 5050": (26.3, 13.2, 320),
        "RTX 5060": (38.4, 19.2, 448),
        "RTX 5060 Ti": (47.4, 23.7, 448),
        "RTX 5070": (61.7, 30.9, 672),
        "RTX 5070 Ti": (87.9, 43.9, 896),
        "RTX 5080": (112.6, 56.3, 960),
    },
    "RTX 4090": {
        "RTX 4090": (165.2, 82.6, 1008),
        "RTX 4090 D": (147.0, 73.5, 1008),
        "RTX 5090": (209.5, 104.8, 1792),
        "RTX 4000 Ada": (106.9, 26.7, 360),
        "RTX 5000 Ada": (261.1, 65.3, 576),
        "RTX 6000 Ada": (364.2, 91.1, 960),
        "RTX PRO 6000 Blackwell": (503.8, 126.0, 1792),
        "L4": (121.0, 30.3, 300),
        "L40": (181.0, 90.5, 864),
        "L40S": (362.0, 91.6, 864),
    },
    "H100": {
        "H100": (989.0, 67.0, 3350),
        "H200": (989.0, 67.0, 4800),
        "GH200": (990.0, 67.0, 4000),
        "B200": (2250.0, 75.0, 8000),
    },
}


def _scaled(given: str, name: str) -> float:
    """Return the weight of `name` from that of a given card of its kind, by their peaks.

    No one figure explains the given weights (the A100 below a 4090, the H100 at 2.5). With these
    exponents, fitted to them by least squares, the product does within 15 %, 7 % typically.
    """
    tensor, fp32, bandwidth = (
        mine / theirs
        for mine, theirs in zip(_PUBLISHED[given][name], _PUBLISHED[given][given], strict=True)
    )
    weight: float = _GIVEN[given] * tensor**0.175 * fp32**0.39 * bandwidth**0.155
    return round(weight * 20) / 20  # steps of 0.05: finer ones would pretend to know


GPU_WEIGHTS: Final[dict[str, float]] = {
    **{name: _scaled(given, name) for given, family in _PUBLISHED.items() for name in family},
    **_GIVEN,
    "V100": 0.75,  # nobody said how much memory: the slower one
    "cpu": 0.05,  # 2 TFLOPS sustained in FP32, a 32-core server, beside the 35.6 of a 3090
}

_VENDOR: Final = re.compile(r"\b(?:NVIDIA|GeForce|Tesla|Quadro)\b", re.IGNORECASE)
_PACKAGE: Final = re.compile(
    r"SXM\d*|PCIE|NVL|DGXS|HBM\d?E?|\d+GB?|GENERATION|(?:SERVER|WORKSTATION|EDITION)"
)
_SIZED: Final = re.compile(r"(?<![0-9a-z])(16|32)GB?(?![0-9a-z])", re.IGNORECASE)


def _key(name: str) -> str:
    """Return what two spellings of one model have in common: `rtx4090`, `RTX-4090` -> RTX4090."""
    words = re.split(r"[\s_-]+", _VENDOR.sub(" ", name).upper())
    return "".join(word for word in words if not _PACKAGE.fullmatch(word))


_NAMES: Final = {_key(name): name for name in GPU_WEIGHTS if not name.startswith("V100 ")}
# People leave RTX out: 4090, a6000. Not where the bare number was once a card: the Quadro 6000.
_NAMES.update(
    {
        key.removeprefix("RTX"): name
        for key, name in list(_NAMES.items())
        if key not in ("RTX6000", "RTX8000")
    }
)


def short_name(name: str, *, memory_gib: float | None = None) -> str:
    """Return the model as GPU_WEIGHTS spells it, or what is left of `name` without its vendor.

    A V100 is named with its memory, from the name or else from `memory_gib`.
    """
    model = _NAMES.get(_key(name)) or " ".join(_VENDOR.sub(" ", name).split())
    if model != "V100":
        return model
    if sized := _SIZED.search(name):
        return f"V100 {sized[1]}GB"
    if memory_gib is not None:
        return "V100 32GB" if memory_gib > 24 else "V100 16GB"
    return model


def nearest_model(name: str) -> str | None:
    """Return the model in the table that `name` most likely belongs with, for a message."""
    key = _key(name)[:64]
    begun = max((known for known in _NAMES if key.startswith(known)), key=len, default=None)
    close = [begun] if begun else difflib.get_close_matches(key, _NAMES, n=1, cutoff=0.8)
    return _NAMES[close[0]] if close else None


# ---- share work out over unequal GPUs ----
#
# A weight is a throughput, RTX 3090 = 1.0: a GPU of weight 1.5 is given 1.5 times the work of one
# of weight 1.0, so that both end together. The table is in `fsqueue.gpu.weights`; a model that is
# not in it is worth DEFAULT_WEIGHT, with a warning.
#
# What is promised: the shares depend on costs, weights and their order alone; no file is ever
# split; with equal weights this is plain bin packing, largest first. A greedy assignment is at
# most one item away from balance, so plan several claims for each GPU: with two, a 3090 and a
# 4090 end 25 % late.

__all__ = [
    "DEFAULT_WEIGHT",
    "GPU_WEIGHTS",
    "assign",
    "assign_files_weighted",
    "get_gpu_weight",
    "short_name",
]

T = TypeVar("T")
log = logging.getLogger(__name__)

DEFAULT_WEIGHT: Final = 1.0
RUN: Final = 1 << 16

_warned: set[str] = set()


def get_gpu_weight(device: int | str | None, *, memory_gib: float | None = None) -> float:
    """Return how fast a GPU is beside an RTX 3090: from the table, else DEFAULT_WEIGHT.

    `device` is a model's name as a driver or a person writes it, or the index that NVML
    (nvidia-smi) gives a GPU of this machine. `memory_gib` decides where a name does not say how
    much memory the card has. Nothing raises; an unknown model is warned of once.
    """
    if isinstance(device, int):
        gpu = next((gpu for gpu in nvml.all_gpus() if gpu.index == device), None)
        device = gpu.name if gpu else f"index {device}"
        if gpu and memory_gib is None:
            memory_gib = gpu.memory_gib
    name = device or ""
    model = short_name(name, memory_gib=memory_gib)
    weight = GPU_WEIGHTS.get(model)
    if weight is None:
        _warn_once(name, model)
        return DEFAULT_WEIGHT
    return weight


def _warn_once(name: str, model: str) -> None:
    if model in _warned:
        return
    _warned.add(model)
    near = nearest_model(name)
    hint = f" (nearest known: {near}, {GPU_WEIGHTS[near]:.2f})" if near else ""
    log.warning("Unknown GPU '%s' - using default weight %s%s", name, DEFAULT_WEIGHT, hint)


def assign(
    costs: Sequence[float], weights: Sequence[float], loads: Sequence[float] | None = None
) -> list[int]:
    """Return the slot of each item: largest first, each to the slot that would end soonest.

    A slot would end at (its load + this cost) / its weight. Counting the item itself matters: a
    lone item goes to the fastest slot, not to the first. Ties go to the lowest slot, and items of
    one cost are taken in their order. `loads` is the cost that already waits in each slot.
    """
    loads = [0] * len(weights) if loads is None else loads
    _check(costs, weights, loads)
    # Among slots of one weight the least loaded is the best for any cost, so each weight needs one
    # heap: n log n for thousands of slots, as long as there are few models.
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
    """Sort so many at a time that a million need four bytes each, not seventy."""
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

    `cost` counts what is in a file (its sequences) and is called once for each. Without
    `gpu_weights` all workers are equal. `names` are the GPUs' models, for the log alone. A worker's
    files come largest first; the list of a worker that gets none is empty.
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
