"""The `compact` handler: a claim for storage workers that makes few shards of a store's many.

    fsqueue plan compact pool/ STORE
    fsqueue work pool/ --role storage

A claim is one space as it was listed when it was planned: planned again before anything was added,
it adds nothing. A worker that dies in it, or two that do it at once, harm nothing (`compact.py`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from embed.store import places
from embed.store.compact import compact
from embed.store.folders import spaces
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
    """Make few large shards of a store's many small ones: work for storage workers."""

    suffix = ".json"
    unit = "shards"
    tier = 3
    options = (Option("grace", 600.0, "seconds that files stay after a shard stands for them"),)

    def survey(self, path: str, options: Mapping[str, Any]) -> Source:
        """List the store whose store.json is at `path`, which is what STORE expands to."""
        root = os.path.dirname(path) if os.path.basename(path) == "store.json" else path
        try:
            found = [(name, view) for name, view in spaces(root)]
        except UsageError as error:
            raise BadInput(str(error)) from error
        listed = {view.directory: [place.name for place in places.listed(view.directory)]
                  for _, view in found}  # fmt: skip
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
        for _name, view in spaces(work.payload["store"]):
            if view.directory == wanted:
                grace_s = work.options["grace"]
                done = compact(view, grace_s=grace_s, stop=lambda: work.stopping)
                if work.stopping:
                    raise Interrupted("stopped between two shards; what is made stays")
                work.output.write_text(
                    json.dumps({"space": wanted} | asdict(done), indent=1) + "\n"
                )
                return
        raise ClaimImpossible(f"{wanted}: is not there any more; the store was removed or moved.")
