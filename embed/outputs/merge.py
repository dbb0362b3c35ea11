"""Join a pool's outputs into one file, or into one for each input as VirNucPro expects them.

One model gives its table; two give the pairs of their rows, by id. Rows without a partner are
listed in a file beside the result.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from embed.options import FORMATS as CHOICES
from embed.outputs import recognise
from embed.outputs.atomic_write import atomic_write
from embed.outputs.collect import InputRows, ModelOutputs, collect, table_of
from embed.outputs.esm_layout import EsmLayout, check_folder
from embed.outputs.formats import FORMATS, check_format, choose_format
from embed.outputs.pairing import PairedTable
from embed.outputs.rounded import rounded
from embed.outputs.table import JoinedTable, Table
from fsqueue import PoolReader, UsageError

UNMATCHED: Final = ".unmatched.tsv"
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


@dataclass(frozen=True, slots=True)
class MergeRequest:
    """What to merge of a pool, and how."""

    format: str | None = None
    model: str | None = None
    """A model's name or kind."""
    plans: Sequence[int] = ()
    """Plan numbers: their tables, paired if they are two."""
    output_dtype: str | None = None
    """float32 or float16; None: as planned."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Values of planned options, which tell apart the tables of one model."""
    partial: bool = False
    force: bool = False
    dry_run: bool = False
    """Only find out whether the merge would be refused once all is done."""


def merge(root: str, out: str, request: MergeRequest | None = None) -> MergeResult:
    """Merge the pool at `root` into the file (virnucpro: folder) `out`.

    Raises UsageError, Unfinished, and NotSupportedError if a library is missing.
    """
    request = request or MergeRequest()
    assert request.format is None or request.format in CHOICES, request.format
    found = select(collect(root, partial=request.partial or request.dry_run), request)
    format = choose_format(out, request.format, found[0].format)
    for one in found:
        dtype = request.output_dtype or one.output_dtype
        check_format(format, ragged=one.pooling == "per-token", dtype=dtype)
        if format == "esm":
            EsmLayout.of(one.planned)
    result = MergeResult(models=[one.model for one in found])
    result.notes += [note for one in found for note in one.notes]
    result.notes += [
        f"{source.path}: {source.why_incomplete}; their sequences are missing"
        for one in found
        for source in one.inputs.values()
        if not source.complete
    ]
    if len(found) == 2 and any(one.pooling == "per-token" for one in found):
        raise UsageError(
            "two models are paired by one row for each sequence, and one of these has a row for "
            "each token. Merge one model at a time: --model"
        )
    guard = _Guard(PoolReader(root), found, request.force)
    if format == "virnucpro":
        guard.check_folder(Path(out))
        if not request.dry_run:
            _write_folder(Path(out), found, result)
    elif format == "esm":
        if len(found) == 2:
            raise UsageError("--format esm holds one model. Merge one at a time: --model")
        check_folder(out)
        if not request.dry_run:
            _write_esm(Path(out), found[0], dtype, result)
    else:
        guard.check_file(out, paired=len(found) == 2)
        if not request.dry_run:
            _write_file(Path(out), format, found, dtype, result)
    return result


@dataclass(frozen=True, slots=True)
class _Guard:
    """Refuses to replace inputs, and what was not written here (`fsqueue.refuse_overwriting`)."""

    reader: PoolReader
    found: Sequence[ModelOutputs]
    force: bool

    def check_file(self, out: str, *, paired: bool) -> None:
        sources = [one.options for one in self.found]
        self.reader.refuse_overwriting(
            out, lambda path: recognise.table(path, sources), force=self.force
        )
        if paired:
            self.reader.refuse_overwriting(f"{out}{UNMATCHED}", recognise.listing)

    def check_folder(self, folder: Path) -> None:
        from embed.outputs import virnucpro

        for one in self.found:
            for name, _source in _named_inputs(one):
                self._check_features(folder / (name + virnucpro.SUFFIX[one.family]))
                if len(self.found) == 2:
                    self._check_features(folder / (_pair_name(name) + virnucpro.MERGED))

    def _check_features(self, path: Path) -> None:
        self.reader.refuse_overwriting(str(path), recognise.features)
        self.reader.refuse_overwriting(f"{path}.done", recognise.marker)


def select(found: list[ModelOutputs], request: MergeRequest) -> list[ModelOutputs]:
    """Return the one table to merge, or the two to pair.

    R41 Two tables are paired only if they are of two models, or were asked for by their plans.
        Tables of one model with different options are a choice, never joined by themselves.
    """
    every = found
    if request.model is not None:
        found = [one for one in found if request.model in (one.kind, one.model)]
        if not found:
            raise UsageError(
                f"--model {request.model}: is not in this pool, which has {_named(every)}."
            )
    for name, value in request.options.items():
        found = [one for one in found if str(one.options.get(name)) == value]
        if not found:
            raise UsageError(f"--option {name}={value}: no table has it; choose {_choice(every)}.")
    if request.plans:
        found = [one for one in found if not one.plans.isdisjoint(request.plans)]
        absent = set(request.plans).difference(*(one.plans for one in every))
        if absent or not found:
            number = min(absent or request.plans)
            raise UsageError(f"--plan {number}: holds none of them; choose {_choice(every)}.")
    models = {one.options.get("weights") for one in found}
    if len(found) == 1 or len(found) == 2 and (len(models) == 2 or len(request.plans) == 2):
        return found
    if len(models) == len(found):
        raise UsageError(
            f"this pool has {len(found)} models ({_named(found)}). Choose one with --model."
        )
    raise UsageError(
        f"this pool has {len(found)} tables that are not one: choose {_choice(found)}, with --plan "
        f"N or --option NAME=VALUE. --plan twice pairs two of them by id."
    )


def _named(found: Sequence[ModelOutputs]) -> str:
    return ", ".join(dict.fromkeys(one.kind or one.model for one in found))


def _choice(found: Sequence[ModelOutputs]) -> str:
    """Return the tables by their plans and by what distinguishes them."""
    several = len({one.model for one in found}) > 1
    differing = [
        name
        for name in found[0].options
        if name != "weights" and len({str(one.options.get(name)) for one in found}) > 1
    ]
    texts = []
    for one in found:
        facts = [one.kind or one.model] if several or not differing else []
        facts += [f"{name}={one.options.get(name)}" for name in differing]
        texts.append(f"plan {min(one.plans)} ({', '.join(facts)})")
    return f"one of {', '.join(texts)}"


# ---- one file ----


def _write_file(
    path: Path, format: str, found: list[ModelOutputs], dtype: str, result: MergeResult
) -> None:
    tables = [one.table() for one in found]
    table = tables[0] if len(tables) == 1 else PairedTable(*tables)
    if isinstance(table, PairedTable):
        if any(one.planned.get("scores") for one in found):
            result.notes.append(
                "a table of two models has no scores; merge one of them alone: --model"
            )
        _report_unmatched(path, table, tables, result)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as private:
        FORMATS[format](private, rounded(table, dtype))
    _record(table, path, result)


def _write_esm(folder: Path, one: ModelOutputs, dtype: str, result: MergeResult) -> None:
    from embed.outputs.esm import write_esm

    table = one.table()
    write_esm(folder, rounded(table, dtype), EsmLayout.of(one.planned))
    _record(table, folder, result)


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
    listing = path.with_name(path.name + UNMATCHED)
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
