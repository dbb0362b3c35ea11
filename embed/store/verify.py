"""Check that everything in a space is as it was written. Reads all of it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from embed.store import shard_names
from embed.store.shards import Shard, StoreError, Vanished
from embed.store.view import View
from embed.store.writer import norms
from fsqueue import FsqueueError

BLOCK_ROWS = 8192


def verify(view: View) -> Iterator[str]:
    """Yield what is wrong with a space, one line for each problem."""
    view.refresh()
    for first, last in shard_names.gaps([shard.name for shard in view.shards]):
        which = f"shard {first} is" if first == last else f"shards {first} to {last} are"
        yield (
            f"{view.directory}: {which} missing; fsqueue removes a shard only when another one "
            f"replaces it, so something else did. Its vectors are computed again when they are "
            f"needed."
        )
    for name in [shard.name for shard in view.shards]:
        try:
            yield from _verify_shard(Shard(view.directory, name), view)
        except Vanished:
            continue  # RACE: compacted since; the compaction verified the shard that replaces it
        except (FsqueueError, OSError) as error:
            yield str(error)


def _verify_shard(shard: Shard, view: View) -> Iterator[str]:
    if not shard.is_intact():
        yield (
            f"{shard.path}: is damaged: its bytes are not those that were written. Remove it; its "
            f"vectors are computed again when they are needed."
        )
        return
    problems: list[str] = []
    if (shard.keys[1:] <= shard.keys[:-1]).any():
        problems.append("its keys are not in order")
    if sorted(shard.rows.tolist()) != list(range(shard.count)):
        problems.append("it does not have one row for each key")
    if (shard.width, shard.dtype) != (view.space.width, view.space.stored_dtype):
        problems.append("its vectors belong to another space")
    columns = shard.columns()
    if not len(columns.ids) == len(columns.lengths) == len(columns.inputs) == shard.count:
        problems.append("it does not have one record for each key")
    row = 0
    for block, stored_norms in shard.blocks(BLOCK_ROWS, ("vectors", "norms")):
        if not np.isfinite(block).all():
            problems.append(f"a vector at or after row {row} is not finite")
        if (norms(block) != stored_norms[:, 0]).any():
            problems.append(f"a norm at or after row {row} is wrong")
        row += len(block)
    if problems:
        raise StoreError(f"{shard.path}: {'; '.join(problems)}. Report this as a defect.")
