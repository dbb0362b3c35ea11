"""Join a pool's outputs into one file, or into one for each input as VirNucPro expects them.

One model gives its table; two give the pairs of their rows, by id. Rows without a partner are
listed in a file beside the result.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from embed.options import FORMATS as CHOICES
from embed.outputs.atomic_write import atomic_write
from embed.outputs.collect import InputRows, ModelOutputs, collect, table_of
from embed.outputs.formats import FORMATS, check_format
from embed.outputs.pairing import PairedTable
from embed.outputs.table import JoinedTable, Table
from fsqueue import UsageError

FORMAT_BY_SUFFIX: Final = {
    ".safetensors": "safetensors",
    ".npz": "npz",
    ".h5": "h5",
    ".hdf5": "h5",
    ".parquet": "parquet",
}
MODEL_SUFFIXES: Final = ("_nucleotide", "_protein")
"""How VirNucPro's inputs for the two models differ in name."""


@dataclass(slots=True)
class MergeResult:
    """What a merge wrote."""

    files: list[str] = field(default_factory=list)
    rows: int = 0
    width: int = 0
    models: list[str] = field(default_factory=list)
    unmatched: list[int] = field(default_factory=list)
    """For a pair of models: how many rows of each have no partner."""
    notes: list[str] = field(default_factory=list)


def merge(
    root: str,
    out: str,
    *,
    format: str | None = None,
    model: str | None = None,
    partial: bool = False,
) -> MergeResult:
    """Merge the pool at `root` into the file (virnucpro: folder) `out`.

    Raises UsageError, Unfinished, and NotSupportedError if a library is missing.
    """
    assert format is None or format in CHOICES, format
    found = _select(collect(root, partial=partial), model)
    format = format or FORMAT_BY_SUFFIX.get(os.path.splitext(out)[1].lower()) or found[0].format
    result = MergeResult(models=[one.model for one in found])
    result.notes += [note for one in found for note in one.notes]
    result.notes += [
        f"{source.path}: not all of its claims are done; their sequences are missing"
        for one in found
        for source in one.inputs.values()
        if not source.complete
    ]
    if format == "virnucpro":
        _write_folder(Path(out), found, result)
    else:
        _write_file(Path(out), format, found, result)
    return result


def _select(found: list[ModelOutputs], model: str | None) -> list[ModelOutputs]:
    """Return the one or two models to merge."""
    known = ", ".join(f"{one.kind or one.model}" for one in found)
    if model is not None:
        selected = [one for one in found if model in (one.kind, one.model)]
        if not selected:
            raise UsageError(f"--model {model}: is not in this pool, which has {known}.")
        found = selected
    if len(found) > 2:
        raise UsageError(f"this pool has {len(found)} models ({known}). Choose one with --model.")
    return found


# ---- one file ----


def _write_file(path: Path, format: str, found: list[ModelOutputs], result: MergeResult) -> None:
    tables = [one.table() for one in found]
    if len(tables) > 1 and any(table.ragged for table in tables):
        raise UsageError(
            "two models are paired by one row for each sequence, and one of these has a row for "
            "each token. Merge one model at a time: --model"
        )
    for each in tables:
        check_format(format, each)
    table = tables[0] if len(tables) == 1 else PairedTable(*tables)
    if isinstance(table, PairedTable):
        _report_unmatched(path, table, tables, result)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as private:
        FORMATS[format](private, table)
    _record(table, path, result)


def _report_unmatched(
    path: Path, table: PairedTable, tables: Sequence[JoinedTable], result: MergeResult
) -> None:
    """List the rows without a partner. Raises UsageError if no row has one."""
    unmatched = [one.count - table.count for one in tables]
    result.unmatched = [a + b for a, b in zip(result.unmatched or [0, 0], unmatched, strict=True)]
    if not any(unmatched):
        return
    if not table.count:
        raise UsageError(
            f"{result.models[0]} and {result.models[1]} have no id in common, so there is nothing "
            f"to pair. Merge one of them with --model, or check that both were given the same ids."
        )
    listing = path.with_name(path.name + ".unmatched.tsv")
    with atomic_write(listing) as private, open(private, "w", encoding="utf-8") as file:
        for which, one in enumerate(result.models):
            file.writelines(f"{id}\t{one}\n" for id in table.unmatched(which))
    result.notes.append(
        f"{_sequences_have(sum(unmatched))} a row from only one of the models ({unmatched[0]:,} "
        f"from {result.models[0]}, {unmatched[1]:,} from {result.models[1]}); they are listed in "
        f"{listing}"
    )


def _sequences_have(count: int) -> str:
    return "1 sequence has" if count == 1 else f"{count:,} sequences have"


def _record(table: Table, path: Path, result: MergeResult) -> None:
    result.files.append(str(path))
    result.rows += table.count
    result.width = table.width


# ---- one file for each input ----


def _write_folder(folder: Path, found: list[ModelOutputs], result: MergeResult) -> None:
    """Write each input's features, and the pairs of inputs that both models have by one name."""
    from embed.outputs import virnucpro

    by_name: list[dict[str, JoinedTable]] = []
    for one in found:
        tables = {}
        for name, source in _named_inputs(one):
            if not source.complete:
                continue  # only complete files are written; a note says so
            tables[name] = table_of(source.parts(), one.width, one.pooling)
            check_format("virnucpro", tables[name])
            path = folder / (name + virnucpro.SUFFIX[one.family])
            virnucpro.write_features(path, tables[name], one.family)
            if len(found) == 1:
                _record(tables[name], path, result)
            else:
                result.files.append(str(path))
        by_name.append({_pair_name(name): table for name, table in tables.items()})
    if len(by_name) == 2:
        _write_pairs(folder, by_name, result)


def _write_pairs(folder: Path, by_name: list[dict[str, JoinedTable]], result: MergeResult) -> None:
    from embed.outputs import virnucpro

    first, second = by_name
    for name in sorted(first.keys() ^ second.keys()):
        which = result.models[name in second]
        result.notes.append(f"{name}: only {which} has an input of this name; it is not merged")
    for name in (name for name in first if name in second):
        table = PairedTable(first[name], second[name])
        path = folder / (name + virnucpro.MERGED)
        if table.count or first[name].count:
            _report_unmatched(path, table, (first[name], second[name]), result)
        virnucpro.write_merged(path, table)
        _record(table, path, result)


def _named_inputs(outputs: ModelOutputs) -> Iterator[tuple[str, InputRows]]:
    """Yield each input with the name of its files: its path in the common folder, without suffix.

    Raises UsageError if two inputs have the same name.
    """
    folders = [os.path.dirname(path) for path in outputs.inputs]
    above = os.path.commonpath(folders) if folders else ""
    taken: dict[str, str] = {}
    for path, source in outputs.inputs.items():
        name = os.path.splitext(os.path.relpath(path, above).removesuffix(".gz"))[0]
        if name in taken:
            raise UsageError(
                f"{path} and {taken[name]} would both be {name!r} in this format. Rename one of "
                f"them and plan it again, or use another --format."
            )
        taken[name] = path
        yield name, source


def _pair_name(name: str) -> str:
    """Return the name that the inputs of both models share."""
    dna, protein = MODEL_SUFFIXES
    parts = [part.removesuffix(dna).removesuffix(protein) for part in name.split(os.sep)]
    return os.sep.join(parts)
