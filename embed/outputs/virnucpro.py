"""Write features as VirNucPro's own stages do, so its later stages can continue from them.

    STEM_ESM.pt          {'proteins': [id...], 'data': [float32 tensor (width,)...]}
    STEM_DNABERT_S.pt    {'nucleotide': [id...], 'data': [{'label', 'mean_representation'}...]}
    STEM_merged.pt       {'ids': [id...], 'data': float32 tensor (rows, 768 + 2560)}

The first two also have `version` and `status`. An empty FILE.done beside each file marks it as
complete. One of the doors to torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from embed.options import VIRNUCPRO_ROWS_MAX
from embed.outputs.atomic_write import atomic_write
from embed.outputs.pairing import PairedTable
from embed.outputs.table import JoinedTable, Table
from fsqueue import UsageError

SUFFIX: Final = {"dnabert": "_DNABERT_S.pt", "esm2": "_ESM.pt"}
"""What follows the input's stem, by the model's family."""
MERGED: Final = "_merged.pt"


def write_features(path: Path, table: JoinedTable, family: str) -> None:
    """Write the features of one input by one model, then its marker."""
    _refuse_large(path, table)
    ids, rows = _load(table)
    if family == "dnabert":
        labelled = zip(ids, rows.tolist(), strict=True)
        data: list[Any] = [{"label": id, "mean_representation": row} for id, row in labelled]
        facts = {"nucleotide": ids, "data": data}
    else:  # a copy of each row, because a view would be saved with its whole table
        facts = {"proteins": ids, "data": [torch.from_numpy(row.copy()) for row in rows]}
    _save(path, {**facts, "version": "1.0", "status": "complete"})


def write_merged(path: Path, table: PairedTable) -> None:
    """Write the paired features of two inputs, then their marker."""
    _refuse_large(path, table)
    ids, rows = _load(table)
    _save(path, {"ids": ids, "data": torch.from_numpy(rows)})


def _load(table: Table) -> tuple[list[str], np.ndarray[Any, np.dtype[np.float32]]]:
    ids: list[str] = []
    rows = np.empty((table.count, table.width), np.float32)
    for block in table.blocks():
        rows[len(ids) : len(ids) + len(block.ids)] = block.rows
        ids += block.ids
    return ids, rows


def _save(path: Path, facts: dict[str, Any]) -> None:
    """Write a file and its marker.

    The marker is removed before and made after, so it never marks the bytes of another run.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    marker = path.with_name(path.name + ".done")
    marker.unlink(missing_ok=True)
    with atomic_write(path) as private:
        torch.save(facts, private)
    marker.touch()


def _refuse_large(path: Path, table: Table) -> None:
    if table.count > VIRNUCPRO_ROWS_MAX:
        raise UsageError(
            f"{path.name}: {table.count:,} sequences; this format is written and read in memory, "
            f"and holds at most {VIRNUCPRO_ROWS_MAX:,}. Plan smaller inputs (fsqueue embed "
            f"prepare --split 10000), or use another --format."
        )
