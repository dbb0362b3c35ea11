"""What extract.py's files hold, and whether a plan's rows have a place in them.

Apart from `esm.py`, which writes them, because planning must not import torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from fsqueue import UsageError

KEYS: Final = {
    "mean": "mean_representations",
    "cls": "bos_representations",
    "per-token": "representations",
}
"""The entry of a file, by --pooling."""


@dataclass(frozen=True, slots=True)
class EsmLayout:
    """What a file's entry is called, and which layers are in it."""

    key: str
    layers: tuple[int, ...]

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> EsmLayout:
        """Return the layout for the rows of a plan with these options.

        Raises UsageError if extract.py has no place for them.
        """
        convention = options.get("convention") or {"layers": "", "head": []}
        if options["pooling"] not in KEYS or convention["head"]:
            raise UsageError(
                "--format esm: extract.py's files hold a mean, the begin token, or a row for each "
                "token. Use --pooling mean, cls or per-token, or another --format."
            )
        text = convention["layers"]
        if text.startswith("mean:"):
            raise UsageError(
                "--format esm: extract.py's files hold each layer by its number, not their "
                "average. Use --layers without mean:, or another --format."
            )
        chosen = [int(number) for number in text.split(",") if number]
        return cls(KEYS[options["pooling"]], tuple(chosen or [options["shape"]["layers"]]))


def check_folder(folder: str) -> None:
    """Raise UsageError unless the folder can be written: it is new, or empty."""
    if os.path.lexists(folder) and not (os.path.isdir(folder) and not os.listdir(folder)):
        raise UsageError(
            f"{folder}: exists, and --format esm writes a file for each sequence into a new "
            f"folder. Name another one, or remove it."
        )
