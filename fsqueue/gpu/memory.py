"""How much memory a GPU has, by its model's name; NVIDIA's published sizes.

Used while planning, often on a machine without the card. Where a model is sold in several sizes and
a name does not tell which, the largest is assumed: a card that turns out smaller leaves the work to
others, but work that is planned for no card is not done by any.
"""

from __future__ import annotations

import re
from typing import Final

from fsqueue.gpu.weights import mig_instance, short_name

_GIB: Final = {
    180: "B200",
    141: "H200",
    96: "RTX PRO 6000 Blackwell, GH200",
    80: "H100, A100",
    48: "RTX A6000, A40, RTX 6000 Ada, L40, L40S, RTX 8000",
    32: "RTX 5090, RTX 5000 Ada, V100, V100 32GB",
    24: "RTX 3090, RTX 3090 Ti, RTX 4090, RTX 4090 D, RTX A5000, A10, A10G, A30, L4, TITAN RTX, "
        "RTX 6000",
    20: "RTX A4500, RTX 4000 Ada",
    16: "RTX 4080, RTX 4080 SUPER, RTX 4070 Ti SUPER, RTX 4060 Ti, RTX 5060 Ti, RTX 5070 Ti, "
        "RTX 5080, RTX A4000, T4, P100, V100 16GB",
    12: "RTX 3060, RTX 3080 Ti, RTX 3080, RTX 4070, RTX 4070 SUPER, RTX 4070 Ti, RTX 5070, "
        "RTX A2000, RTX 2060",
    11: "RTX 2080 Ti",
    8: "RTX 3050, RTX 3060 Ti, RTX 3070, RTX 3070 Ti, RTX 4060, RTX 5050, RTX 5060, RTX 2070, "
       "RTX 2070 SUPER, RTX 2080, RTX 2080 SUPER, RTX 2060 SUPER",
}  # fmt: skip
MEMORY_GIB: Final = {name: gib for gib, names in _GIB.items() for name in names.split(", ")}
_SIZE: Final = re.compile(r"(?<![0-9a-z])([0-9]{1,3})[ -]?GB?(?![0-9a-z])", re.IGNORECASE)


def memory_gib(name: str) -> float | None:
    """Return the memory of a model, as a person or a driver names it; None if unknown.

    A size in the name counts: `a100-40gb` has 40. A MIG instance has that of its profile.
    """
    if instance := mig_instance(name):
        return float(instance.memory_gb)
    if sized := _SIZE.search(name):
        return float(sized[1])
    found = MEMORY_GIB.get(short_name(name))
    return None if found is None else float(found)
