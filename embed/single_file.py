"""Embed one file without a pool: plan it, do its claims one after the other, and join them.

What is written is what `fsqueue embed merge` would write of a pool that holds this file alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embed.handlers.embed import Embed
from embed.outputs.collect import table_of
from embed.outputs.formats import FORMATS, check
from embed.outputs.table import Part
from embed.outputs.whole_files import private_folder, whole
from fsqueue import Item, Work

COST_MAX = 10**18
"""No reason to divide: only what an output can hold limits a claim."""


@dataclass(frozen=True, slots=True)
class Said:
    """Where to tell what happens: (sequences done, in all), and warnings."""

    progress: Callable[[int, int], None]
    warn: Callable[[str], None]


def embed_file(path: str, out: str, options: dict[str, Any], said: Said) -> int:
    """Embed the file at `path` into the file `out`; return how many sequences it has.

    `options` are those of `fsqueue plan embed`, all of them. Raises UsageError, BadInput,
    ClaimFailed.
    """
    handler = Embed()
    handler.name = "embed"
    options = handler.prepare(options)
    source = handler.survey(os.path.abspath(path), options)
    for note in source.notes:
        said.warn(note)
    total, done = source.measures["sequences"], 0
    target = Path(out)
    target.parent.mkdir(parents=True, exist_ok=True)
    with private_folder(target) as folder:
        parts = []
        for number, item in enumerate(handler.cut([source], options, COST_MAX)):
            work = _work(item, options, f"{folder}/{number}", said, (done, total))
            handler.run(work)
            count = item.measures["sequences"]
            parts.append(Part(str(work.output), 0, count, count))
            done += count
        _write(target, parts, options)
    handler.close()
    return total


def _work(
    item: Item, options: Mapping[str, Any], place: str, said: Said, counts: tuple[int, int]
) -> Work:
    before, total = counts
    return Work(
        id=item.stem,
        kind=item.kind,
        cost=item.cost,
        attempt=0,
        payload=item.payload,
        options={**options, "checkpoint_seconds": COST_MAX},
        output=Path(place),
        partial=f"{place}.partial",
        is_stopping=lambda: False,
        report=lambda done, _total, _measures: said.progress(before + done, total),
        warn=said.warn,
    )


def _write(target: Path, parts: list[Part], options: Mapping[str, Any]) -> None:
    table = table_of(parts, options["width"], options["pooling"])
    check(options["format"], table)
    if options["format"] == "virnucpro":
        from embed.outputs.virnucpro import write_features

        write_features(target, table, options["family"])
        return
    with whole(target) as private:
        FORMATS[options["format"]](private, table)
