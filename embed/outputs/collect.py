"""Find what a pool has embedded: which models, which inputs, and where the rows of each input are.

Plans whose rows belong into one table (same weights, precision, pooling, chunking) are collected
together, inputs in the order in which they were planned. An input that was planned again, because
it changed, takes its last place. Every planned part of an input must be there exactly once;
`partial` accepts missing ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from embed.outputs.table import JoinedTable, Part, RaggedTable
from fsqueue import ClaimView, FsqueueError, PlanView, PoolReader, UsageError

DECISIVE: Final = (
    *("weights", "dtype", "pooling", "convention", "long", "max_residues"),
    *("overlap", "scores"),
    *("text", "chunk_size", "chunk_overlap"),
)
"""The options that decide whether rows of two plans belong into one table."""


class Unfinished(FsqueueError):
    """Claims are not done, so a table would lack their rows."""

    def __init__(self, message: str, exit_status: int) -> None:
        super().__init__(message)
        self.exit_status = exit_status


@dataclass(slots=True)
class InputRows:
    """One planned file, and where the rows of its sequences are."""

    path: str
    pieces: list[tuple[int, int, Part]] = field(default_factory=list)
    """(first byte, byte after the last, rows) of each part of the file."""
    complete: bool = True
    """Whether all of its claims are done."""
    given_up: bool = False
    """Whether what is not done was given up (`fsqueue forget`)."""

    @property
    def why_incomplete(self) -> str:
        return "claims of it were forgotten" if self.given_up else "not all of its claims are done"

    def parts(self) -> list[Part]:
        """Return where its rows are, in the order of the file. Raises FsqueueError on a gap."""
        self.pieces.sort(key=lambda piece: piece[:2])
        reached = 0
        for begin, end, _part in self.pieces:
            if begin != reached and self.complete:
                raise FsqueueError(
                    f"{self.path}: its outputs do not join: one ends at byte {reached:,}, the next "
                    f"begins at {begin:,}. The pool was edited: fsqueue check POOL; plan it again."
                )
            reached = end
        return [part for _begin, _end, part in self.pieces]


@dataclass(slots=True)
class ModelOutputs:
    """Everything that one model has embedded in a pool."""

    model: str
    kind: str
    family: str
    width: int
    format: str
    pooling: str
    planned: Mapping[str, Any] = field(default_factory=dict)
    """All options of its last plan."""
    output_dtype: str = "float32"
    options: dict[str, Any] = field(default_factory=dict)
    """The decisive options, of those that its plans have."""
    plans: set[int] = field(default_factory=set)
    """The numbers of its plans."""
    inputs: dict[str, InputRows] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def table(self) -> JoinedTable:
        """Return all rows, inputs in planned order."""
        parts = [part for one in self.inputs.values() for part in one.parts()]
        return table_of(parts, self.width, self.pooling)


def table_of(parts: list[Part], width: int, pooling: str) -> JoinedTable:
    """Return parts of outputs as one table, ragged if they were pooled per token."""
    return (RaggedTable if pooling == "per-token" else JoinedTable)(parts, width)


def collect(root: str, *, partial: bool = False) -> list[ModelOutputs]:
    """Return what each model has embedded, DNA before protein.

    Raises Unfinished if claims are not done, unless `partial`.
    """
    reader = PoolReader(root)
    found: dict[tuple[Any, ...], ModelOutputs] = {}
    unfinished: list[tuple[ClaimView, InputRows]] = []
    for plan in reader.plans("embed"):
        options = plan.options
        outputs = found.setdefault(
            tuple(str(options.get(name)) for name in DECISIVE),
            ModelOutputs(
                model=options["model"],
                kind="",
                family=options.get("family", "esm2"),
                width=options["width"],
                format=options.get("format", "safetensors"),
                pooling=options["pooling"],
                planned=options,
                output_dtype=options.get("output_dtype", "float32"),
                options=_telling(options),
            ),
        )
        outputs.plans.add(plan.number)
        unfinished += _add_plan(reader, plan, outputs)
    # An input that was planned again no longer needs the claims of its earlier plan.
    needed = {id(source) for one in found.values() for source in one.inputs.values()}
    missing = {claim.id: claim for claim, source in unfinished if id(source) in needed}
    if missing and not partial:
        raise _unfinished(reader.root, [*missing.values()])
    if not found:
        raise UsageError(
            f"{reader.root} holds no embeddings: nothing was planned with fsqueue plan embed."
        )
    return sorted(found.values(), key=lambda one: one.family != "dnabert")


def _telling(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the decisive options by which a person can tell tables apart."""
    found = {name: options[name] for name in DECISIVE if name in options}
    convention = found.pop("convention", {})
    return found | {
        "layers": convention.get("layers") or "last",
        "normalize": convention.get("normalize", False),
        "prefix": convention.get("prefix", ""),
    }


def _add_plan(
    reader: PoolReader, plan: PlanView, outputs: ModelOutputs
) -> Iterator[tuple[ClaimView, InputRows]]:
    """Add the outputs of a plan's claims; yield each claim that is not done, with its input."""
    planned = {path: InputRows(path) for path in plan.inputs}
    yield from _add_claims(reader, plan, outputs, planned)
    for path, source in planned.items():
        # Superseded here: the version of an earlier plan is the one that counts again.
        if path in outputs.inputs and source.given_up and outputs.inputs[path].complete:
            continue
        if outputs.inputs.pop(path, None):
            outputs.notes.append(f"{path}: was planned more than once; the last plan is used")
        outputs.inputs[path] = source


def _add_claims(
    reader: PoolReader, plan: PlanView, outputs: ModelOutputs, planned: dict[str, InputRows]
) -> Iterator[tuple[ClaimView, InputRows]]:
    for claim in reader.claims(plan):
        outputs.kind = claim.kind
        done, row = claim.done, 0
        for segment, total in _segments(reader, claim):
            begin, end = segment["start"], segment["start"] + sum(segment["lengths"])
            part = Part(claim.output, row, segment["sequences"], total)
            row += segment["sequences"]
            source = planned[segment["path"]]
            if done:
                source.pieces.append((begin, end, part))
                continue
            source.complete = False
            source.given_up |= claim.given_up
            if not claim.given_up:
                yield claim, source


def _segments(reader: PoolReader, claim: ClaimView) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield the segments of a claim, each with the total number of rows in its output."""
    try:
        payload = reader.payload(claim)
    except FileNotFoundError as error:
        # RACE: it moved since the pool was listed; a claim that is done does not.
        raise Unfinished(
            f"{reader.root}: {claim.id} is changing its state. Try again, or wait: fsqueue wait "
            f"{reader.root}",
            5,
        ) from error
    for segment in payload["segments"]:
        yield segment, payload["sequences"]


def _unfinished(root: str, claims: list[ClaimView]) -> Unfinished:
    failed = sum(claim.failed for claim in claims)
    subject = "1 claim is" if len(claims) == 1 else f"{len(claims):,} claims are"
    return Unfinished(
        f"{root}: {subject} not done ({failed:,} failed), among them {claims[0].id}; the table "
        f"would lack their sequences. See: fsqueue status {root}. Retry failed claims: fsqueue "
        f"failed {root}, fsqueue retry {root}. Or merge what is done: --partial",
        3 if failed == len(claims) else 5,
    )
