"""Join outputs that have a row for each token into one ragged table.

Sequence i of the table has rows offsets[i] to offsets[i + 1]. Rows stay in their files, as those of
any other table do.

What this module does not know: what a token is, and what the table is written to.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from embed.tables import BLOCK_BYTES, Block, Joined, Output, Part


class Ragged(Joined):
    """Parts of outputs, one after the other; a part counts sequences, each with its own rows."""

    ragged = True

    def __init__(self, parts: Sequence[Part], width: int = 0) -> None:
        super().__init__(parts, width)
        cuts = [self._cuts(part) for part in self.parts]
        lengths = [np.diff(each) for each in cuts] or [np.zeros(0, np.int64)]
        self.offsets: NDArray[np.int64] = np.cumsum(np.concatenate([[0], *lengths]))
        self.rows = int(self.offsets[-1])

    def blocks(self) -> Iterator[Block]:
        """Yield whole sequences in order, about as many rows at a time as memory should hold."""
        for part in self.parts:
            output, cuts = self._outputs[part.path], self._cuts(part)
            ids = output.ids()[part.first : part.first + part.count]
            begin = 0
            while begin < part.count:
                end = self._end_of_block(cuts, begin)
                rows = output.array("embeddings")[cuts[begin] : cuts[end]]
                here = slice(part.first + begin, part.first + end)
                columns = {name: output.array(name)[here] for name in self.columns}
                yield Block(ids[begin:end], rows, columns)
                begin = end

    def _cuts(self, part: Part) -> NDArray[np.int64]:
        output: Output = self._outputs[part.path]
        return np.asarray(output.array("offsets")[part.first : part.first + part.count + 1])

    def _end_of_block(self, cuts: NDArray[np.int64], begin: int) -> int:
        room = BLOCK_BYTES // (4 * max(1, self.width))
        end = int(np.searchsorted(cuts, cuts[begin] + room, "right")) - 1
        return max(begin + 1, min(end, len(cuts) - 1))
