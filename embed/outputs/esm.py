"""Write a folder of `.pt` files as fair-esm's `extract.py` does, one for each sequence.

    {"label": id, "mean_representations": {layer: tensor (width,)}}        --pooling mean
    {"label": id, "bos_representations": {layer: tensor (width,)}}         --pooling cls
    {"label": id, "representations": {layer: tensor (residues, width)}}    --pooling per-token

A file is named by the id. A `/` in it, which would make a folder, is written `_`; a name that is
too long for a file system is cut; repeated names get suffixes `~2`, `~3`. The label is always the
whole id. One of the doors to torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch

from embed.outputs.atomic_write import private_folder
from embed.outputs.esm_layout import EsmLayout, check_folder
from embed.outputs.table import Table

NAME_BYTES_MAX: Final = 240


def write_esm(folder: Path, table: Table, layout: EsmLayout) -> None:
    """Write the folder whole."""
    check_folder(str(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with private_folder(folder) as private:
        taken: set[str] = set()
        for block in table.blocks():
            rows = _by_id(block.rows, block.lengths)
            for id, each in zip(block.ids, rows, strict=True):
                # A copy of each, because a view would be saved with its whole block.
                parts = [torch.from_numpy(p.copy()) for p in np.split(each, len(layout.layers), -1)]
                facts = {"label": id, layout.key: dict(zip(layout.layers, parts, strict=True))}
                _save(facts, private / f"{_name(id, taken)}.pt")
        if folder.exists():
            folder.rmdir()  # it was empty
        private.rename(folder)


def _by_id(rows: np.ndarray, lengths: Sequence[int] | None) -> Sequence[np.ndarray]:  # type: ignore[type-arg]
    if lengths is None:
        return list(rows)
    return np.split(rows, np.cumsum(lengths)[:-1]) if len(lengths) else []


def _name(id: str, taken: set[str]) -> str:
    """Return a name for the file that no earlier sequence has."""
    plain = id.replace("/", "_").replace("\0", "_").encode()[:NAME_BYTES_MAX]
    plain_text = plain.decode(errors="ignore").lstrip(".") or "_"
    name, number = plain_text, 1
    while name in taken:
        number += 1
        name = f"{plain_text}~{number}"
    taken.add(name)
    return name


def _save(facts: Mapping[str, object], path: Path) -> None:
    with open(path, "wb") as file:
        torch.save(facts, file)
        file.flush()
        os.fsync(file.fileno())
