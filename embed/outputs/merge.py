"""Join a pool's outputs into one file, or into one for each input as VirNucPro has them.

One model gives its table; two give their pairs, by id. What could not be paired is listed in a file
beside the result, never dropped in silence.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from embed.options import FORMATS as CHOICES
from embed.outputs.collect import Gathered, Input, gather, table_of
from embed.outputs.formats import FORMATS, check
from embed.outputs.pairing import Paired
from embed.outputs.table import Joined, Table
from embed.outputs.whole_files import whole
from fsqueue import UsageError

SUFFIXES: Final = {
    ".safetensors": "safetensors",
    ".npz": "npz",
    ".h5": "h5",
    ".hdf5": "h5",
    ".parquet": "parquet",
}
MARKS: Final = ("_nucleotide", "_protein")
"""What VirNucPro's names have that are otherwise the same for both models."""


@dataclass(slots=True)
class Merged:
    """What a merge wrote."""

    files: list[str] = field(default_factory=list)
    rows: int = 0
    width: int = 0
    models: list[str] = field(default_factory=list)
    unmatched: list[int] = field(default_factory=list)
    """For a pair: how many rows of each model the other one lacks."""
    notes: list[str] = field(default_factory=list)


def merge(
    root: str, out: str, *, format: str | None = None, model: str | None = None,
    partial: bool = False,
) -> Merged:  # fmt: skip
    """Merge the pool at `root` into the file (virnucpro: folder) `out`.

    Raises UsageError, Unfinished, NotSupportedError if a library lacks.
    """
    assert format is None or format in CHOICES, format
    found = _chosen(gather(root, partial=partial), model)
    format = format or SUFFIXES.get(os.path.splitext(out)[1].lower()) or found[0].format
    result = Merged(models=[one.model for one in found])
    result.notes += [note for one in found for note in one.notes]
    result.notes += [
        f"{one.path}: not all of its claims are done; what is missing of it is missing here"
        for each in found
        for one in each.inputs.values()
        if not one.whole
    ]
    if format == "virnucpro":
        _write_folder(Path(out), found, result)
    else:
        _write_file(Path(out), format, found, result)
    return result


def _chosen(found: list[Gathered], model: str | None) -> list[Gathered]:
    """Return the one or two models to merge."""
    known = ", ".join(f"{one.kind or one.model}" for one in found)
    if model is not None:
        chosen = [one for one in found if model in (one.kind, one.model)]
        if not chosen:
            raise UsageError(f"--model {model}: this pool has none of that name, but {known}.")
        found = chosen
    if len(found) > 2:
        raise UsageError(f"this pool has {len(found)} models ({known}). Choose one with --model.")
    return found


# ---- one file ----


def _write_file(path: Path, format: str, found: list[Gathered], result: Merged) -> None:
    tables = [one.table() for one in found]
    if len(tables) > 1 and any(table.ragged for table in tables):
        raise UsageError(
            "two models are paired by a row for each sequence, and one of these has a row for each "
            "token. Merge one model at a time: --model"
        )
    for each in tables:
        check(format, each)
    table = tables[0] if len(tables) == 1 else Paired(*tables)
    if isinstance(table, Paired):
        _report_unmatched(path, table, tables, result)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as private:
        FORMATS[format](private, table)
    _count(table, path, result)


def _report_unmatched(path: Path, table: Paired, tables: Sequence[Joined], result: Merged) -> None:
    """List the rows without a partner; refuse if none has one."""
    lacking = [one.count - table.count for one in tables]
    result.unmatched = [a + b for a, b in zip(result.unmatched or [0, 0], lacking, strict=True)]
    if not any(lacking):
        return
    if not table.count:
        raise UsageError(
            f"no id is in both {result.models[0]} and {result.models[1]}, so there is nothing to "
            f"pair. Merge one of them with --model, or see that both were given the same ids."
        )
    listing = path.with_name(path.name + ".unmatched.tsv")
    with whole(listing) as private, open(private, "w", encoding="utf-8") as file:
        for which, one in enumerate(result.models):
            file.writelines(f"{id}\t{one}\n" for id in table.unmatched(which))
    result.notes.append(
        f"{sum(lacking):,} sequences are known to one of the models only ({lacking[0]:,} to "
        f"{result.models[0]}, {lacking[1]:,} to {result.models[1]}); they are listed in {listing}"
    )


def _count(table: Table, path: Path, result: Merged) -> None:
    result.files.append(str(path))
    result.rows += table.count
    result.width = table.width


# ---- one file for each input ----


def _write_folder(folder: Path, found: list[Gathered], result: Merged) -> None:
    """Write each input's features, and where both models have an input of one name, their pairs."""
    from embed.outputs import virnucpro

    named: list[dict[str, Joined]] = []
    for one in found:
        tables = {}
        for name, source in _names(one):
            if not source.whole:
                continue  # whole files or none: its note is there
            tables[name] = table_of(source.parts(), one.width, one.pooling)
            check("virnucpro", tables[name])
            path = folder / (name + virnucpro.SUFFIX[one.family])
            virnucpro.write_features(path, tables[name], one.family)
            if len(found) == 1:
                _count(tables[name], path, result)
            else:
                result.files.append(str(path))
        named.append({_pair_name(name): table for name, table in tables.items()})
    if len(named) == 2:
        _write_pairs(folder, named, result)


def _write_pairs(folder: Path, named: list[dict[str, Joined]], result: Merged) -> None:
    from embed.outputs import virnucpro

    first, second = named
    for name in sorted(first.keys() ^ second.keys()):
        which = result.models[name in second]
        result.notes.append(f"{name}: only {which} has an input of this name; it is not merged")
    for name in (name for name in first if name in second):
        table = Paired(first[name], second[name])
        path = folder / (name + virnucpro.MERGED)
        if table.count or first[name].count:
            _report_unmatched(path, table, (first[name], second[name]), result)
        virnucpro.write_merged(path, table)
        _count(table, path, result)


def _names(one: Gathered) -> Iterator[tuple[str, Input]]:
    """Yield each input with the name of its files: its stem, and those of its folders that tell it
    from others. Raises UsageError if two are the same."""
    folders = [os.path.dirname(path) for path in one.inputs]
    above = os.path.commonpath(folders) if folders else ""
    taken: dict[str, str] = {}
    for path, source in one.inputs.items():
        name = os.path.splitext(os.path.relpath(path, above).removesuffix(".gz"))[0]
        if name in taken:
            raise UsageError(
                f"{path} and {taken[name]} would both be {name!r} in this format. Rename one of "
                f"them and plan it anew, or take another --format."
            )
        taken[name] = path
        yield name, source


def _pair_name(name: str) -> str:
    """Return the name that the inputs of both models share."""
    parts = [part.removesuffix(MARKS[0]).removesuffix(MARKS[1]) for part in name.split(os.sep)]
    return os.sep.join(parts)
