"""Find what a pool has embedded: which model, which inputs, and where the rows of each input are.

Plans that give rows of one table (same weights, precision, pooling, cut) are gathered together,
inputs in the order in which they were planned. An input that was planned again, because it changed,
counts as planned last. What is planned must be there, each part of an input once and none missing;
`partial` makes do with what is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from embed.outputs.table import Joined, Part, Ragged
from fsqueue import ClaimView, FsqueueError, PlanView, PoolReader, UsageError

DECIDING: Final = (
    *("weights", "dtype", "pooling", "long", "max_residues"),
    *("text", "chunk_size", "chunk_overlap"),
)
"""The options by which rows of two plans belong into one table, or do not."""


class Unfinished(FsqueueError):
    """Claims are not done, so that a table would lack their rows."""

    def __init__(self, message: str, exit_status: int) -> None:
        super().__init__(message)
        self.exit_status = exit_status


@dataclass(slots=True)
class Input:
    """One planned file, and where the rows of its sequences are."""

    path: str
    pieces: list[tuple[int, int, Part]] = field(default_factory=list)
    """(first byte, byte after the last, rows), in the order of the file once gathered."""
    whole: bool = True
    """Whether all of its claims are done."""

    def parts(self) -> list[Part]:
        """Return where its rows are, in the order of the file. Raises FsqueueError on a gap."""
        self.pieces.sort(key=lambda piece: piece[:2])
        reached = 0
        for begin, end, _part in self.pieces:
            if begin != reached and self.whole:
                raise FsqueueError(
                    f"{self.path}: its outputs do not join: one ends at byte {reached:,}, the next "
                    f"begins at {begin:,}. The pool was edited: fsqueue check POOL; plan anew."
                )
            reached = end
        return [part for _begin, _end, part in self.pieces]


@dataclass(slots=True)
class Gathered:
    """All that one model has embedded in a pool."""

    model: str
    kind: str
    family: str
    width: int
    format: str
    pooling: str
    inputs: dict[str, Input] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def table(self) -> Joined:
        """Return all rows, inputs in planned order."""
        parts = [part for one in self.inputs.values() for part in one.parts()]
        return table_of(parts, self.width, self.pooling)


def table_of(parts: list[Part], width: int, pooling: str) -> Joined:
    """Return parts of outputs as one table, ragged if their sequences have rows by token."""
    return (Ragged if pooling == "per-token" else Joined)(parts, width)


def gather(root: str, *, partial: bool = False) -> list[Gathered]:
    """Return what each model has embedded, DNA before protein.

    Raises Unfinished if claims are not done, unless `partial`.
    """
    reader = PoolReader(root)
    found: dict[tuple[Any, ...], Gathered] = {}
    unfinished: list[tuple[ClaimView, Input]] = []
    for plan in reader.plans("embed"):
        options = plan.options
        one = found.setdefault(
            tuple(str(options.get(name)) for name in DECIDING),
            Gathered(
                options["model"],
                "",
                options.get("family", "esm2"),
                options["width"],
                options.get("format", "safetensors"),
                options["pooling"],
            ),
        )
        unfinished += _take_in(reader, plan, one)
    wanted = {id(source) for one in found.values() for source in one.inputs.values()}
    missing = {claim.id: claim for claim, source in unfinished if id(source) in wanted}
    if missing and not partial:
        raise _unfinished(reader.root, [*missing.values()])
    if not found:
        raise UsageError(
            f"{reader.root} holds no embeddings: nothing was planned with fsqueue plan embed."
        )
    return sorted(found.values(), key=lambda one: one.family != "dnabert")


def _take_in(
    reader: PoolReader, plan: PlanView, one: Gathered
) -> Iterator[tuple[ClaimView, Input]]:
    """Add what a plan's claims have given; yield those that are not done, and what of."""
    mine = {path: Input(path) for path in plan.inputs}
    for path in mine:
        if one.inputs.pop(path, None):
            one.notes.append(f"{path}: was planned more than once; its last plan counts")
    one.inputs |= mine
    for claim in reader.claims(plan):
        one.kind = claim.kind
        done, row = claim.state == "done", 0
        for segment in _segments(reader, claim):
            begin, end = segment["start"], segment["start"] + sum(segment["lengths"])
            part = Part(claim.output, row, segment["sequences"], segment["of"])
            row += segment["sequences"]
            source = mine[segment["path"]]
            if done:
                source.pieces.append((begin, end, part))
            else:
                source.whole = False
                yield claim, source


def _segments(reader: PoolReader, claim: ClaimView) -> list[dict[str, Any]]:
    """Return the segments of a claim, each with how many rows its output has in all."""
    try:
        payload = reader.payload(claim)
    except FileNotFoundError as error:
        # RACE: it moved since the pool was listed; a claim that is done does not.
        raise Unfinished(
            f"{reader.root}: {claim.id} is on its way to another state. Try again, or wait: "
            f"fsqueue wait {reader.root}",
            5,
        ) from error
    return [{**segment, "of": payload["sequences"]} for segment in payload["segments"]]


def _unfinished(root: str, claims: list[ClaimView]) -> Unfinished:
    failed = sum(claim.state == "failed" for claim in claims)
    what = f"{len(claims):,} claims are not done ({failed:,} of them failed), {claims[0].id} first"
    return Unfinished(
        f"{root}: {what}; a table would lack their sequences. See: fsqueue status {root}; failed "
        f"ones: fsqueue failed {root}, fsqueue retry {root}. Or merge what is there: --partial",
        3 if failed == len(claims) else 5,
    )
