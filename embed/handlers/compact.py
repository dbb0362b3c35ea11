"""The `compact` handler: merges a store's many shards into few, as work for storage workers.

    fsqueue plan compact pool/ STORE
    fsqueue work pool/ --role storage

A claim is one space with its list of shards at the time of planning, so planning it again before
anything was added adds no claim. A worker may be killed in it, and two may do it at once
(`store/compact.py`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from embed.store.compact import compact
from embed.store.shard_names import list_shards
from embed.store.spaces import list_spaces
from fsqueue import (
    BadInput,
    ClaimImpossible,
    Handler,
    Interrupted,
    Item,
    Option,
    Source,
    UsageError,
    Work,
)


class Compact(Handler):
    """Merge a store's many small shards into few large ones: work for storage workers."""

    name = "compact"
    suffix = ".json"
    unit = "shards"
    tier = 3
    options = (Option("grace", 600.0, "Seconds that superseded files are kept."),)

    def survey(self, path: str, options: Mapping[str, Any]) -> Source:
        """List the shards of a store; `path` is its store.json, which STORE expands to."""
        root = os.path.dirname(path) if os.path.basename(path) == "store.json" else path
        try:
            directories = [view.directory for _name, view in list_spaces(root)]
        except UsageError as error:
            raise BadInput(str(error)) from error
        listed = {
            directory: [name.filename for name in list_shards(directory)]
            for directory in directories
        }
        shards = sum(map(len, listed.values()))
        key = hashlib.sha256(json.dumps([root, listed], sort_keys=True).encode()).hexdigest()
        return Source(path, key, max(1, shards), {"shards": shards}, (), (root, listed))

    def cut(
        self, sources: Sequence[Source], options: Mapping[str, Any], cost_max: int
    ) -> Iterator[Item]:
        """Yield a claim for each space."""
        for root, listed in (source.detail for source in sources):
            for folder, names in listed.items():
                identity = {"folder": folder, "shards": names}
                payload = {"store": root, "folder": folder}
                cost, measures = max(1, len(names)), {"shards": len(names)}
                stem = os.path.basename(folder)
                yield Item(stem, "compact", cost, identity, payload, measures)

    def run(self, work: Work) -> None:
        """Compact the space; write what was done."""
        wanted = work.payload["folder"]
        for _name, view in list_spaces(work.payload["store"]):
            if view.directory == wanted:
                grace_s = work.options["grace"]
                done = compact(view, grace_s=grace_s, stop=lambda: work.stopping)
                if work.stopping:
                    raise Interrupted("stopped between two shards; finished ones stay")
                work.output.write_text(
                    json.dumps({"space": wanted} | asdict(done), indent=1) + "\n"
                )
                return
        raise ClaimImpossible(f"{wanted}: no longer exists; the store was removed or moved.")
