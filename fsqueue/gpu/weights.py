"""GPU models: what each is called, and how fast it is relative to an RTX 3090.

Names come from drivers and from people: `NVIDIA A100-SXM4-80GB`, `a100-80gb` and `A100` are one
model. They are compared whole, never by substring, after dropping vendor, package and memory size:
`RTX 3060 Laptop GPU` is not an RTX 3060, nor `RTX A1000` an A100. A MIG instance, such as
`A100 MIG 3g.20gb`, has the part of its card's weight that its compute slices are of the card's. A
model that is not in the table gets DEFAULT_WEIGHT, with a warning.
"""

from __future__ import annotations

import difflib
import logging
import re
from dataclasses import dataclass
from typing import Final

from fsqueue.gpu import nvml

log = logging.getLogger(__name__)

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
    return round(weight * 20) / 20  # in steps of 0.05: the estimate is no finer


GPU_WEIGHTS: Final[dict[str, float]] = {
    **{name: _scaled(given, name) for given, family in _PUBLISHED.items() for name in family},
    **_GIVEN,
    "V100": 0.75,  # memory not given: the slower one
    "cpu": 0.05,  # 2 TFLOPS sustained in FP32, a 32-core server, beside the 35.6 of a 3090
}

_VENDOR: Final = re.compile(r"\b(?:NVIDIA|GeForce|Tesla|Quadro)\b", re.IGNORECASE)
_PACKAGE: Final = re.compile(
    r"SXM\d*|PCIE|NVL|DGXS|HBM\d?E?|\d+GB?|GENERATION|(?:SERVER|WORKSTATION|EDITION)"
)
_SIZED: Final = re.compile(r"(?<![0-9a-z])(16|32)GB?(?![0-9a-z])", re.IGNORECASE)


def _key(name: str) -> str:
    """Return a key that all spellings of a model share: `rtx4090`, `RTX-4090` -> RTX4090."""
    words = re.split(r"[\s_-]+", _VENDOR.sub(" ", name).upper())
    return "".join(word for word in words if not _PACKAGE.fullmatch(word))


_NAMES: Final = {_key(name): name for name in GPU_WEIGHTS if not name.startswith("V100 ")}
# People leave out RTX: 4090, a6000. Except where the bare number was another card: the Quadro 6000.
_NAMES.update(
    {
        key.removeprefix("RTX"): name
        for key, name in list(_NAMES.items())
        if key not in ("RTX6000", "RTX8000")
    }
)


def short_name(name: str, *, memory_gib: float | None = None) -> str:
    """Return the model as GPU_WEIGHTS spells it, or what is left of `name` without its vendor.

    A V100 is named with its memory, from the name or else from `memory_gib`, and a MIG instance
    with its profile: `A100 MIG 3g.20gb`.
    """
    if instance := mig_instance(name):
        return f"{short_name(instance.card)} MIG {instance.profile}".strip()
    model = _NAMES.get(_key(name)) or " ".join(_VENDOR.sub(" ", name).split())
    if model != "V100":
        return model
    if sized := _SIZED.search(name):
        return f"V100 {sized[1]}GB"
    if memory_gib is not None:
        return "V100 32GB" if memory_gib > 24 else "V100 16GB"
    return model


# ---- MIG ----

_MIG: Final = re.compile(
    r"(?P<card>.*\S)\s+MIG\s+(?P<profile>(?:(?P<part>[1-7])c\.)?(?P<slices>[1-7])g\."
    r"(?P<gb>[0-9]{1,3})gb\S{0,12})",
    re.IGNORECASE,
)
_SLICES: Final = {"A30": 4, "RTX PRO 6000 Blackwell": 4}
"""Into how many compute slices a card is cut; all others into seven."""


@dataclass(frozen=True, slots=True)
class MigInstance:
    """What the name of a MIG instance says: its card, its profile such as 3g.20gb, and of that the
    compute slices and the memory in GB."""

    card: str
    profile: str
    slices: int
    memory_gb: int

    @property
    def share(self) -> float:
        """Return which part of its card's compute slices it has."""
        return min(1.0, self.slices / _SLICES.get(short_name(self.card), 7))


def mig_instance(name: str) -> MigInstance | None:
    """Return what a MIG instance's name says; None for the name of anything else."""
    found = _MIG.fullmatch(name.strip())
    if found is None:
        return None
    slices = int(found["part"] or found["slices"])
    return MigInstance(found["card"], found["profile"].lower(), slices, int(found["gb"]))


def nearest_model(name: str) -> str | None:
    """Return the model in the table that `name` most likely belongs with, for a message."""
    key = _key(name)[:64]
    begun = max((known for known in _NAMES if key.startswith(known)), key=len, default=None)
    close = [begun] if begun else difflib.get_close_matches(key, _NAMES, n=1, cutoff=0.8)
    return _NAMES[close[0]] if close else None


# ---- the weight of a GPU ----

DEFAULT_WEIGHT: Final = 1.0
_warned: set[str] = set()


def get_gpu_weight(device: int | str | None, *, memory_gib: float | None = None) -> float:
    """Return how fast a GPU is relative to an RTX 3090: from the table, else DEFAULT_WEIGHT.

    `device` is a model's name as a driver or a person writes it, or the index that NVML
    (nvidia-smi) gives a GPU of this machine. `memory_gib` decides where a name does not tell how
    much memory the card has. Never raises; an unknown model is logged once.
    """
    if isinstance(device, int):
        gpu = next((gpu for gpu in nvml.all_gpus() if gpu.index == device), None)
        device = gpu.name if gpu else f"index {device}"
        if gpu and memory_gib is None:
            memory_gib = gpu.memory_gib
    name = device or ""
    model = short_name(name, memory_gib=memory_gib)
    weight = known_weight(model)
    if weight is None:
        _warn_once(name, model)
        return DEFAULT_WEIGHT
    return weight


def known_weight(model: str) -> float | None:
    """Return the weight of a model as `short_name` spells it; None if it is not in the table."""
    if instance := mig_instance(model):
        whole = GPU_WEIGHTS.get(instance.card)
        return None if whole is None else round(whole * instance.share, 2)
    return GPU_WEIGHTS.get(model)


def _warn_once(name: str, model: str) -> None:
    if model in _warned:
        return
    _warned.add(model)
    near = nearest_model(name)
    hint = f" (nearest known: {near}, {GPU_WEIGHTS[near]:.2f})" if near else ""
    log.warning("Unknown GPU '%s' - using default weight %s%s", name, DEFAULT_WEIGHT, hint)
