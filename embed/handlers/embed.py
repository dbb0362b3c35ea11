"""The `embed` handler: FASTA in, one vector per sequence out, by ESM-2, DNABERT or another model.

Planning knows files and counts only; torch and transformers are imported when the first claim runs.
A claim is read in windows, embedded in batches that follow from the claim alone, checked, and
written. Finished batches are checkpointed, so that an interruption costs at most
`checkpoint_seconds` and changes no byte of the result.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

from embed.engine.tokenizing import parts_of, verify_all
from embed.handlers import claim
from embed.inputs import division, document_plan
from embed.inputs.fasta_scan import scan
from embed.models import families, files, hub
from embed.models.cost import PER_SECOND, Shape, estimate
from embed.models.families import FAMILIES, Tokens
from embed.options import DTYPE_TAGS, OPTIONS
from embed.store import folders
from embed.store.view import View
from fsqueue import BadInput, Handler, Item, Source, UsageError, Work

if TYPE_CHECKING:
    from embed.engine.model_cache import ModelCache
    from embed.engine.non_finite import Float32Fallback

log = logging.getLogger(__name__)

NOT_DECISIVE: Final = ("folder", "checkpoint_seconds", "format", "shape", "store", "collection")
"""What is no part of the work: where model and store lie, how often to save, what comes later."""
RAGGED_BYTES: Final = 1 << 30
"""An output with a row for each token should not be larger."""


class Embed(Handler):
    """Embed the sequences of FASTA files with ESM-2, DNABERT or another encoder."""

    suffix = ".safetensors"
    unit = "sequences"
    options = OPTIONS
    cost_per_second = PER_SECOND

    def __init__(self) -> None:
        self._model_cache: ModelCache | None = None
        self._store: View | None = None
        self._tokens: dict[str, Tokens] = {}

    # ---- planning ----

    def prepare(self, options: dict[str, Any]) -> dict[str, Any]:
        """Find the model, and pin it: its exact weights become part of every claim."""
        model = hub.find(options["model"])
        family = FAMILIES[model.family]
        if options["format"] == "virnucpro" and family.name == "auto":
            raise UsageError(
                "--format virnucpro: that pipeline reads vectors of ESM-2 and DNABERT only. Take "
                "another format for this model."
            )
        is_text = options.get("text")
        options = {
            **(options if is_text else document_plan.without(options)),
            "max_residues": options["max_residues"] or model.longest or family.residues_max,
            "long": options["long"] or family.long,
        }
        for name in ("max_residues", "tokens_per_batch", "threads", "checkpoint_seconds"):
            if options[name] < 1:
                raise UsageError(f"--{name.replace('_', '-')} {options[name]}: must be 1 or more.")
        options = {
            **options,
            **folders.asked(options),
            "model": model.name,
            "folder": "" if model.revision else model.folder,
            "revision": model.revision,
            "weights": model.weights,
            "family": family.name,
            "width": model.width,
            "shape": asdict(Shape.of(files.config(model.folder))),
        }
        return options | (document_plan.prepared(options, self.tokens(options)) if is_text else {})

    def result_options(self, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Leave out what decides no byte of the outputs."""
        plain = ("store_dtype", "float32")  # what is stored as computed is as if it were not
        return {k: v for k, v in options.items() if k not in NOT_DECISIVE and (k, v) != plain}

    def survey(self, path: str, options: Mapping[str, Any]) -> Source:
        """Count the sequences and residues of a file. Raises BadInput."""
        path = os.path.abspath(path) if path != "-" else path
        if options.get("text"):
            return document_plan.survey(path, options, self.tokens(options), estimate(options))
        found = scan(path, estimate(options).costs)
        key = hashlib.sha256(f"{path}\n{found.digest}".encode("utf-8", "surrogateescape"))
        measures = {name: found.total(name) for name in ("sequences", "residues")}
        longest = int(found.blocks["longest"].max(initial=0))
        in_letters = not FAMILIES[options["family"]].in_tokens
        if options["long"] == "fail" and in_letters and longest > options["max_residues"]:
            raise BadInput(
                f"{path}: holds a sequence of {longest:,} residues, more than --max-residues "
                f"{options['max_residues']}, and --long fail refuses it. Raise the one or change "
                f"the other: --long truncate|window"
            )
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
        if options["pooling"] == "per-token":
            tokens_max = RAGGED_BYTES // (4 * options["width"])
            cost_max = min(cost_max, int(tokens_max * estimate(options).per_token))
        for draft in division.drafts([source.detail for source in sources], cost_max):
            identity = {"segments": [segment.identity() for segment in draft.segments]}
            letters = "characters" if options.get("text") else "residues"
            measures = {"sequences": draft.sequences, letters: draft.residues}
            cost = max(1, draft.cost)
            yield Item(draft.stem, kind, cost, identity, draft.payload(), measures)

    # ---- running ----

    def run(self, work: Work) -> None:
        """Embed one claim. Raises what `Handler.run` may."""
        verify_all(parts_of(work.payload))  # a changed input fails here, not after an hour
        claim.embed(work, self.model(work), _provenance(work.options), self.view(work.options))

    def model(self, work: Work) -> claim.Model:
        """Return the model of a claim, which is loaded once something must be computed."""
        return claim.Model(
            self.tokens(work.options), lambda: self.engine(work.options, work.warn)[0]
        )

    def tokens(self, options: Mapping[str, Any]) -> Tokens:
        """Return what reads sequences for these options' model, without loading that."""
        if options["weights"] not in self._tokens:
            folder = "" if options["family"] == "esm2" else hub.locate(options)
            self._tokens[options["weights"]] = families.reader(options["family"], folder)
        return self._tokens[options["weights"]]

    def inputs(self, payload: Mapping[str, Any]) -> list[str]:
        """Return the files that a claim reads, each once."""
        return list(dict.fromkeys(part.path for part in parts_of(payload)))

    def warm(self, options: Mapping[str, Any]) -> None:
        """Load the model of these options."""
        self.engine(options, log.warning)

    def selftest(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Run a known input; ClaimImpossible if this device or the model answers wrongly."""

        engine, tokens = self.engine(options, log.warning)
        assert self._model_cache is not None
        from embed.engine import self_test

        self_test.check_device(options["family"], self._model_cache.device)
        return {"kind": _kind(options)} | self_test.check_model(engine, tokens, options)

    def text_model(self) -> str:
        """Return the model that is loaded and reads text, as --model takes it; "" without one."""
        found = [each for each in self._model_cache or () if document_plan.reads_text(each.tokens)]
        return found[-1].spec if found else ""

    def loaded(self) -> list[str]:
        return [each.kind for each in self._model_cache or ()]

    def close(self) -> None:
        self._model_cache = self._store = None
        self._tokens = {}

    def view(self, options: Mapping[str, Any]) -> View | None:
        """Return the space that the plan stores to; its shards stay open between claims."""
        if not options.get("store"):
            return None
        if self._store is None or self._store.directory != folders.place(options):
            self._store = folders.opened(options)
        return self._store

    def engine(
        self, options: Mapping[str, Any], warn: Callable[[str], None]
    ) -> tuple[Float32Fallback, Tokens]:
        """Return the engine for these options' model, loading it if it is not there."""
        from embed.engine.engine import choose_device, use_threads
        from embed.engine.model_cache import ModelCache

        use_threads(options["threads"])
        if self._model_cache is None:
            _compare_threads(options["threads"], warn)
            self._model_cache = ModelCache.on(choose_device(warn))
        found = self._model_cache.get(options, _kind(options), self.models_max)
        return found.engine(options), found.tokens


def _compare_threads(threads: int, warn: Callable[[str], None]) -> None:
    cores = len(os.sched_getaffinity(0))
    if threads > cores:
        warn(
            f"planned with --threads {threads}, and this worker has {cores} cores; "
            f"more threads than cores slow each other down, but decide the last digits"
        )


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
        "pooling": options["pooling"],
        "long": options["long"],
        "residues_max": str(options["max_residues"]),
        "versions": {name: version(name) for name in FAMILIES[options["family"]].libraries},
    }
