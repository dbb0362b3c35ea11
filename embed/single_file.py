"""Embed one file without a pool: plan it, do its claims one after the other, and join the outputs.

The result is what `fsqueue embed merge` would write of a pool with only this file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from embed.handlers.embed import Embed
from embed.outputs import recognise
from embed.outputs.atomic_write import atomic_write, private_folder
from embed.outputs.collect import table_of
from embed.outputs.esm_layout import EsmLayout, check_folder
from embed.outputs.formats import FORMATS
from embed.outputs.rounded import rounded
from embed.outputs.table import Part
from fsqueue import Earlier, Item, Work, refuse_overwriting

COST_MAX: Final = 10**18
"""No limit to a claim, except what an output can hold."""
NEVER_S: Final = 10**18

Progress = Callable[[int, int], None]
"""Is called with the number of sequences done, and of all."""
Warn = Callable[[str], None]


def embed_file(
    path: str,
    out: str,
    options: dict[str, Any],
    *,
    progress: Progress,
    warn: Warn,
    force: bool = False,
) -> int:
    """Embed the file at `path` into the file `out`; return how many sequences it has.

    `options` are all options of `fsqueue plan embed`. What can be refused is refused before the
    first batch (R42). Raises UsageError, BadInput, ClaimFailed, NotSupportedError.
    """
    handler = Embed()
    options = handler.prepare(options)
    for line in handler.describe(options):
        warn(line)
    _refuse_overwriting(path, out, options, force=force)
    source = handler.survey(os.path.abspath(path), options)
    for note in source.notes if not source.measures["sequences"] else ():
        warn(note)  # those about sequences are repeated, and complete, when they were read
    total, done = source.measures["sequences"], 0
    target = Path(out)
    target.parent.mkdir(parents=True, exist_ok=True)
    with private_folder(target) as folder:
        parts = []
        for number, item in enumerate(handler.cut([source], options, COST_MAX)):

            def report(
                claim_done: int, _total: int, _measures: Mapping[str, int], before: int = done
            ) -> None:
                progress(before + claim_done, total)

            work = _work(item, options, f"{folder}/{number}", report, warn)
            handler.run(work)
            count = item.measures["sequences"]
            parts.append(Part(str(work.output), 0, count, count))
            done += count
        _write(target, parts, options)
    handler.close()
    return total


def _refuse_overwriting(path: str, out: str, options: Mapping[str, Any], *, force: bool) -> None:
    if options["format"] == "esm":
        check_folder(out)
        return

    def known(found: str) -> Earlier:
        if options["format"] == "virnucpro":
            return recognise.features(found)
        return recognise.table(found, [options])

    refuse_overwriting(out, inputs=[path], recognise=known, force=force)
    if options["format"] == "virnucpro":
        marker = f"{out}.done"
        refuse_overwriting(marker, inputs=[path], recognise=recognise.marker)


def _work(
    item: Item,
    options: Mapping[str, Any],
    output: str,
    report: Callable[[int, int, Mapping[str, int]], None],
    warn: Warn,
) -> Work:
    return Work(
        id=item.stem,
        kind=item.kind,
        cost=item.cost,
        attempt=0,
        payload=item.payload,
        options={**options, "checkpoint_seconds": NEVER_S},
        output=Path(output),
        partial=f"{output}.partial",
        is_stopping=lambda: False,
        report=report,
        warn=warn,
    )


def _write(target: Path, parts: list[Part], options: Mapping[str, Any]) -> None:
    table = table_of(parts, options["width"], options["pooling"])
    if options["format"] == "virnucpro":
        from embed.outputs.virnucpro import write_features

        write_features(target, table, options["family"])
        return
    final = rounded(table, options["output_dtype"])
    if options["format"] == "esm":
        from embed.outputs.esm import write_esm

        write_esm(target, final, EsmLayout.of(options))
        return
    with atomic_write(target) as private:
        FORMATS[options["format"]](private, final)
