"""The `embed` handler: FASTA in, one mean ESM-2 vector per sequence out.

Planning knows files and counts only; torch and transformers are imported when the first claim runs.
A claim is read in windows, embedded in batches that follow from the claim alone, checked, and
written. Finished batches are checkpointed, so that an interruption costs at most
`checkpoint_seconds` and changes no byte of the result.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

from embed import claim, hub, planning
from embed.cost import costs
from embed.scan import scan
from embed.segments import Segment, verify
from fsqueue import Handler, Item, Option, Source, UsageError, Work, host_lock

if TYPE_CHECKING:
    from embed.engine import Engine

RESIDUES_MAX: Final = 1022
"""ESM-2 was trained on windows of 1,024 tokens; fair-esm's extract.py cuts here too."""
DTYPE_TAGS: Final = {"float32": "", "bfloat16": "-bf16", "float16": "-f16"}

OPTIONS: Final = (
    Option("model", None, "ESM-2: a folder, or a hub id with an optional @revision", required=True),
    Option("dtype", "float32", "precision; float16 is slow on most CPUs", tuple(DTYPE_TAGS)),
    Option("max_residues", RESIDUES_MAX, "longer sequences are cut to this; they are counted"),
    Option("tokens_per_batch", 4096, "tokens computed together; halved where memory runs out"),
    Option("threads", 1, "threads of a worker without a GPU; the last digits depend on it"),
    Option("checkpoint_seconds", 60, "how often a long claim saves what it has"),
)


class Embed(Handler):
    """Embed the sequences of FASTA files with ESM-2."""

    suffix = ".safetensors"
    unit = "sequences"
    options = OPTIONS

    def __init__(self) -> None:
        self._engine: Engine | None = None
        self._wanted = ("", "")
        self._kind = ""

    # ---- planning ----

    def prepare(self, options: dict[str, Any]) -> dict[str, Any]:
        """Find the model, and pin it: its exact weights become part of every claim."""
        for name in ("max_residues", "tokens_per_batch", "threads", "checkpoint_seconds"):
            if options[name] < 1:
                raise UsageError(f"--{name.replace('_', '-')} {options[name]}: must be 1 or more.")
        model = hub.find(options["model"])
        return {
            **options,
            "model": model.name,
            "folder": "" if model.revision else model.folder,
            "revision": model.revision,
            "weights": model.weights,
            "width": model.width,
        }

    def decisive(self, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Leave out what decides no byte: where the model lies, and how often to save."""
        return {k: v for k, v in options.items() if k not in ("folder", "checkpoint_seconds")}

    def survey(self, path: str, options: Mapping[str, Any]) -> Source:
        """Count the sequences and residues of a file. Raises BadInput."""
        path = os.path.abspath(path) if path != "-" else path
        found = scan(path, lambda lengths: costs(lengths, options["max_residues"]))
        key = hashlib.sha256(f"{path}\n{found.digest}".encode("utf-8", "surrogateescape"))
        measures = {name: found.total(name) for name in ("sequences", "residues")}
        notes = []
        if not measures["sequences"]:
            notes.append(f"{path}: holds no sequences; its claim will give an empty table.")
        if found.empty:
            notes.append(f"{path}: {found.empty} sequences have no residues; theirs will be zeros.")
        return Source(path, key.hexdigest(), found.total("cost"), measures, notes, found)

    def cut(
        self, sources: Sequence[Source], options: Mapping[str, Any], cost_max: int
    ) -> Iterator[Item]:
        """Divide large files at record boundaries, and pack small ones together."""
        kind = _kind(options)
        for draft in planning.drafts([source.detail for source in sources], cost_max):
            identity = {"segments": [segment.identity() for segment in draft.segments]}
            measures = {"sequences": draft.sequences, "residues": draft.residues}
            cost = max(1, draft.cost)
            yield Item(draft.stem, kind, cost, identity, draft.payload(), measures)

    # ---- running ----

    def run(self, work: Work) -> None:
        """Embed one claim. Raises what `Handler.run` may."""
        for segment in work.payload["segments"]:
            verify(Segment.decode(segment))  # a changed input fails here, not after an hour
        engine = self._ready(work)
        claim.embed(work, engine, _provenance(work.options))

    def loaded(self) -> list[str]:
        return [self._kind] if self._engine else []

    def close(self) -> None:
        self._engine = None

    def _ready(self, work: Work) -> Engine:
        """Return the engine for this claim's model, loading it if another or none is there."""
        from embed import engine, models

        options = work.options
        wanted = (options["weights"], options["dtype"])
        engine.use_threads(options["threads"])
        if self._engine is None or self._wanted != wanted:
            self._engine = None  # its memory is needed for the next one
            kind, device = _kind(options), engine.choose_device(work.warn)
            with host_lock(f"load-{kind}"):
                encoder = models.load(hub.locate(options), options["dtype"], device)
            self._engine, self._wanted, self._kind = engine.Engine(encoder), wanted, kind
        return self._engine


def _kind(options: Mapping[str, Any]) -> str:
    """Return what a worker must have loaded, as it stands in a claim's name: at most 32 bytes."""
    tag = DTYPE_TAGS[options["dtype"]]
    name = options["model"].rsplit("/", 1)[-1].lower()
    return re.sub(r"[^a-z0-9]+", "_", name)[: 32 - len(tag)].strip("_") + tag or "model"


def _provenance(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an output's header says about how its numbers came about."""
    return {
        "model": options["model"],
        "revision": options["revision"],
        "weights": options["weights"],
        "dtype": options["dtype"],
        "pooling": "mean",
        "residues_max": str(options["max_residues"]),
        "versions": {name: version(name) for name in ("fsqueue", "torch", "transformers")},
    }
