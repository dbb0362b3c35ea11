"""Round a table to float16 while it is written.

Half the size. A vector keeps three digits, enough for neighbours; a number beyond 65,504 does not
fit, and is refused rather than written as infinity.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embed.outputs.table import Block, Table
from fsqueue import FsqueueError


class RoundedTable:
    """Another table in float16."""

    dtype = np.dtype("<f2")

    def __init__(self, table: Table) -> None:
        self._table = table
        self.name, self.ragged, self.width = table.name, table.ragged, table.width
        self.count, self.rows = table.count, table.rows
        self.columns: Mapping[str, np.dtype[Any]] = table.columns
        self.metadata = {**table.metadata, "output_dtype": "float16"}

    @property
    def offsets(self) -> NDArray[np.int64]:
        return self._table.offsets

    def blocks(self) -> Iterator[Block]:
        """Yield all rows in order."""
        for block in self._table.blocks():
            with np.errstate(over="ignore"):
                rows = block.rows.astype(self.dtype)
            if np.isinf(rows).any():
                raise FsqueueError(
                    "--output-dtype float16: a vector has numbers beyond 65,504, which float16 "
                    "cannot hold. Write float32."
                )
            yield replace(block, rows=rows)


def rounded(table: Table, dtype: str) -> Table:
    """Return the table in this dtype: float32 or float16."""
    return table if dtype == "float32" else RoundedTable(table)
