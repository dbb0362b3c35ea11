"""The `embed` handler: FASTA in, one vector per sequence out, by ESM-2, DNABERT or another model.

Planning needs only files and counts; torch and transformers are imported when the first claim runs.
A claim is embedded in batches that depend on the claim alone, checked, and written. Finished
batches are checkpointed, so an interruption costs at most `checkpoint_seconds` and changes no byte
of the result.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

from embed.handlers import embed_claim
from embed.handlers.embed_claim import ClaimModel
from embed.inputs import chunks, letter_check
from embed.inputs.claims import draft_claims, segments_of, verified_segments
from embed.inputs.fasta_scan import Scan, scan
from embed.inputs.too_long import TooLong, TooLongCounter, letters_sure
from embed.models import encode_many, families, precision
from embed.models.conventions.convention import PLAIN, Convention
from embed.models.conventions.practice import Practice, decide
from embed.models.cost import PER_SECOND, ModelShape, estimate, memory_gib
from embed.models.families import FAMILIES, Family, Tokenizer
from embed.models.generic.shape import refuse_too_long
from embed.models.generic.tokenizer import GenericTokenizer
from embed.models.published import adapter, files, hub
from embed.models.published.hub import PinnedModel
from embed.models.scores.masked_lm import Scores, check_scores
from embed.options import AUTO, DTYPE_TAGS, OPTIONS, VIRNUCPRO_ROWS_MAX
from embed.outputs.esm_layout import EsmLayout
from embed.outputs.formats import check_format
from embed.store import spaces
from embed.store.view import View
from fsqueue import (
    BadInput,
    ClaimImpossible,
    Handler,
    Item,
    PlannedGpu,
    Source,
    UsageError,
    Work,
    local_gpus,
)

if TYPE_CHECKING:
    from embed.engine.float32_fallback import Float32Fallback
    from embed.engine.model_cache import ModelCache

log = logging.getLogger(__name__)

NOT_DECISIVE: Final = (
    *("folder", "checkpoint_seconds", "format", "shape", "store", "collection"),
    *("plan_notes", "windows", "output_dtype", "deterministic", "adapter"),
    "content",
)
"""Options that do not change an output: where model and store are, how often to save, ..."""
CONVENTION_OPTIONS: Final = ("pooling", "layers", "normalize", "prefix", "prompt", "convention")
"""What a user asks for; a plan pins what becomes of it."""
WHERE_SET: Final = ("windows", "overlap", "scores", "adapter_hash")
"""Options that an output's header has, where a plan has them."""
RAGGED_BYTES: Final = 1 << 30
"""The largest output with a row for each token."""


class Embed(Handler):
    """Embed the sequences of FASTA files with ESM-2, DNABERT or another encoder."""

    name = "embed"
    suffix = ".safetensors"
    unit = "sequences"
    options = OPTIONS
    cost_per_second = PER_SECOND

    def __init__(self) -> None:
        self._model_cache: ModelCache | None = None
        self._store: View | None = None
        self._tokenizers: dict[tuple[str, str, bool], Tokenizer] = {}
        self._too_long = TooLongCounter()

    # ---- planning ----

    def for_gpus(self, options: dict[str, Any], gpus: Sequence[PlannedGpu]) -> dict[str, Any]:
        """Choose the precision if it is `auto`."""
        if options["dtype"] != AUTO:
            return options
        dtype, why = precision.choose(gpus)
        return options | {"dtype": dtype, "dtype_note": f"dtype: {dtype} (auto: {why})"}

    def prepare(self, options: dict[str, Any]) -> dict[str, Any]:
        """Find the model, and pin it: its exact weights become part of every claim."""
        prepared = self.pin(options)
        prepared |= spaces.store_options(prepared)
        if prepared["store"] and Scores.of(prepared):
            raise UsageError(
                "--scores with --store: a store keeps vectors only. Omit --store (or unset "
                "FSQUEUE_STORE), or plan the scores separately."
            )
        is_text = options.get("text")
        return prepared | (
            chunks.text_options(prepared, self.tokenizer(prepared)) if is_text else {}
        )

    def pin(self, options: dict[str, Any]) -> dict[str, Any]:
        """Check the options, and complete those about the model. Raises UsageError."""
        options = self.for_gpus(options, local_gpus() if options["dtype"] == AUTO else ())
        notes = [options["dtype_note"]] if "dtype_note" in options else []
        options = {name: value for name, value in options.items() if name != "dtype_note"}
        check_format(
            options["format"],
            ragged=options["pooling"] == "per-token",
            dtype=options["output_dtype"],
        )
        model = hub.find(options["model"])
        family = FAMILIES[model.family]
        if options["format"] == "virnucpro" and family.name == "auto":
            raise UsageError(
                "--format virnucpro: that pipeline reads vectors of ESM-2 and DNABERT only. Use "
                "another format for this model."
            )
        is_text = options.get("text")
        config = files.read_config(model.folder)
        practice = self._decide(model, config, options)
        options = {
            **(options if is_text else chunks.drop_text_options(options)),
            "max_residues": options["max_residues"] or model.longest or family.residues_max,
            "long": options["long"] or family.long,
        }
        for name in ("max_residues", "tokens_per_batch", "threads", "checkpoint_seconds"):
            if options[name] < 1:
                raise UsageError(f"--{name.replace('_', '-')} {options[name]}: must be 1 or more.")
        if family.in_tokens:
            refuse_too_long(model.folder, options["max_residues"])
        options = _windows(options, practice.convention, family)
        options = {k: v for k, v in options.items() if k not in CONVENTION_OPTIONS}
        options |= practice.convention.options(family.name)
        if family.name != "esm2":  # kept, so that the files need not be hashed again
            convention = Convention.of(options | {"family": family.name})
            key = model.weights, convention.prefix, convention.pools_prefix
            self._tokenizers[key] = self._load_tokenizer(model, convention)
        options = {
            **options,
            "model": model.name,
            "folder": "" if model.revision else model.folder,
            "revision": model.revision,
            "weights": model.weights,
            "content": hub.content(model),
            "family": family.name,
            "width": practice.convention.width(model.width),
            "shape": asdict(ModelShape.of(config)),
            "plan_notes": [practice.line, *notes, *practice.notes],
        }
        options = _with_adapter(options, model)
        if options["format"] == "esm":
            EsmLayout.of(options)
        return self._with_scores(model, config, options)

    def _with_scores(
        self, model: PinnedModel, config: Mapping[str, Any], options: dict[str, Any]
    ) -> dict[str, Any]:
        """Return the options, without --scores if there are none. Raises UsageError."""
        if not options.get("scores"):
            return {name: value for name, value in options.items() if name != "scores"}
        check_scores(
            model.folder,
            model.family,
            config,
            None if model.family == "esm2" else self.tokenizer(options),
            Convention.of(options),
            options,
        )
        return options

    def _decide(
        self, model: PinnedModel, config: Mapping[str, Any], options: Mapping[str, Any]
    ) -> Practice:
        """Return what the embedding of the model is under these options. Raises UsageError."""
        if isinstance(options.get("convention"), dict):  # that of a store, which a query follows
            return Practice(Convention.decode(options["convention"]), "as in the store")
        tokenizer = None
        if model.family == "auto":
            tokenizer = self._load_tokenizer(model, PLAIN)
        return decide(model.folder, model.family, config, tokenizer, options)

    def _load_tokenizer(self, model: PinnedModel, convention: Convention) -> Tokenizer:
        try:
            return families.load_tokenizer(model.family, model.folder, convention)
        except ClaimImpossible as error:
            raise UsageError(str(error)) from error

    def describe(self, options: Mapping[str, Any]) -> Sequence[str]:
        """Return how sequences become vectors, and what else is worth knowing about the model."""
        merged = [f"adapter: {options['adapter']}, merged"] if options.get("adapter") else []
        return [*merged, *options["plan_notes"]]

    def gpu_memory_gib(self, options: Mapping[str, Any]) -> float:
        """Return what the model needs."""
        return memory_gib(options)

    def result_options(self, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Leave out the options that do not change the outputs."""
        exact = ("store_dtype", "float32")  # a store in float32 does not round
        return {k: v for k, v in options.items() if k not in NOT_DECISIVE and (k, v) != exact}

    def survey(self, path: str, options: Mapping[str, Any]) -> Source:
        """Count the sequences and residues of a file. Raises BadInput."""
        path = os.path.abspath(path) if path != "-" else path
        if options.get("text"):
            return chunks.survey_document(path, options, self.tokenizer(options), estimate(options))
        tokenizer = self.tokenizer(options)
        limit = _Limit.of(options, tokenizer)
        found = scan(path, estimate(options).costs, longer_than=limit.sure)
        key = hashlib.sha256(f"{path}\n{found.digest}".encode("utf-8", "surrogateescape"))
        letters = FAMILIES[options["family"]].letters
        measures = {"sequences": found.total("sequences"), letters: found.total("residues")}
        longest = int(found.blocks["longest"].max(initial=0))
        if options.get("format") == "virnucpro" and measures["sequences"] > VIRNUCPRO_ROWS_MAX:
            raise BadInput(
                f"{path}: contains {measures['sequences']:,} sequences, and a file for VirNucPro "
                f"holds at most {VIRNUCPRO_ROWS_MAX:,}. Divide it (fsqueue embed prepare --split "
                f"10000), or use another --format."
            )
        longer = self._count_longer(found, limit, tokenizer)
        if options["long"] == "fail" and longer.count:
            where = f" of {longest:,} {letters}," if limit.in_letters else ""
            raise BadInput(
                f"{path}: contains a sequence{where} longer than --max-residues "
                f"{options['max_residues']:,}, and --long fail refuses it. Raise --max-residues, "
                f"or use --long truncate or window."
            )
        notes = []
        if not measures["sequences"]:
            notes.append(f"{path}: contains no sequences; its claim will give an empty table.")
        if found.empty:
            have = "1 sequence has" if found.empty == 1 else f"{found.empty:,} sequences have"
            notes.append(f"{path}: {have} no {letters}; the vector will be zeros.")
        if longer.count:
            notes.append(_too_long(path, longer, limit, letters, options))
        first, are_all = letter_check.first_records(path)
        kind = letter_check.reads(options["family"], tokenizer)
        notes += letter_check.check(path, first, tokenizer, kind, are_all=are_all)
        return Source(path, key.hexdigest(), found.total("cost"), measures, notes, found)

    def _count_longer(self, found: Scan, limit: _Limit, tokenizer: Tokenizer) -> TooLong:
        """Return how many sequences of a file do not fit into the model."""
        if limit.in_letters or not found.longer:
            return TooLong(found.longer)
        assert isinstance(tokenizer, GenericTokenizer)
        return self._too_long.count(found, tokenizer, limit.room)

    def cut(
        self, sources: Sequence[Source], options: Mapping[str, Any], cost_max: int
    ) -> Iterator[Item]:
        """Divide large files at record boundaries, and pack small ones together."""
        kind = _kind(options)
        if options["pooling"] == "per-token":
            tokens_max = RAGGED_BYTES // (4 * options["width"])
            cost_max = min(cost_max, int(tokens_max * estimate(options).per_token))
        for draft in draft_claims([source.detail for source in sources], cost_max):
            identity = {"segments": [segment.identity() for segment in draft.segments]}
            own = FAMILIES[options["family"]].letters
            letters = "characters" if options.get("text") else own
            measures = {"sequences": draft.sequences, letters: draft.residues}
            cost = max(1, draft.cost)
            yield Item(draft.stem, kind, cost, identity, draft.payload(), measures)

    # ---- running ----

    def run(self, work: Work) -> None:
        """Embed one claim. Raises as `Handler.run` may."""
        segments = verified_segments(work.payload)
        embed_claim.embed(
            work, segments, self.model(work), _provenance(work.options), self.view(work.options)
        )

    def model(self, work: Work) -> ClaimModel:
        """Return the model of a claim, which is loaded when something must be computed."""
        return ClaimModel(
            self.tokenizer(work.options), lambda: self.engine(work.options, work.warn)[0]
        )

    def tokenizer(self, options: Mapping[str, Any]) -> Tokenizer:
        """Return the tokenizer of these options' model, without loading the model."""
        convention = Convention.of(options)
        key = options["weights"], convention.prefix, convention.pools_prefix
        if key not in self._tokenizers:
            folder = "" if options["family"] == "esm2" else hub.locate(options)
            self._tokenizers[key] = families.load_tokenizer(options["family"], folder, convention)
        return self._tokenizers[key]

    def inputs(self, payload: Mapping[str, Any]) -> list[str]:
        """Return the files that a claim reads, each once."""
        return list(dict.fromkeys(part.path for part in segments_of(payload)))

    def warm(self, options: Mapping[str, Any]) -> None:
        """Load the model of these options."""
        self.engine(options, log.warning)

    def selftest(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Run known inputs.

        Raises WorkerBroken if this device computes wrong results, ClaimImpossible if the model
        does.
        """
        from embed.engine import self_test

        engine, tokenizer = self.engine(options, log.warning)
        assert self._model_cache is not None
        self_test.check_device(options["family"], self._model_cache.device)
        return {"kind": _kind(options)} | self_test.check_model(engine, tokenizer, options)

    def text_model(self) -> str:
        """Return a text model that is loaded, as --model takes it; "" if none is."""
        found = [each for each in self._model_cache or () if chunks.reads_text(each.tokenizer)]
        return found[-1].spec if found else ""

    def device_name(self) -> str:
        """Return the name, as in `--weight`, of the device that is used; "" before there is one."""
        return self._model_cache.device.name if self._model_cache else ""

    def loaded(self) -> list[str]:
        return [each.kind for each in self._model_cache or ()]

    def close(self) -> None:
        if self._model_cache is not None:
            self._model_cache.close()
        self._model_cache = self._store = None
        self._tokenizers = {}

    def view(self, options: Mapping[str, Any]) -> View | None:
        """Return the space that the plan stores into; its shards stay open between claims."""
        if not options.get("store"):
            return None
        if self._store is None or self._store.directory != spaces.space_directory(options):
            self._store = spaces.open_space(options)
        return self._store

    def engine(
        self, options: Mapping[str, Any], warn: Callable[[str], None]
    ) -> tuple[Float32Fallback, Tokenizer]:
        """Return the engine and tokenizer of these options' model, loading it if necessary."""
        from embed.engine.devices import choose_device
        from embed.engine.engine import use_threads
        from embed.engine.model_cache import ModelCache

        use_threads(options["threads"])
        if self._model_cache is None:
            _warn_of_few_cores(options["threads"], warn)
            device = choose_device(warn)
            if device.is_cpu and options["threads"] == 1:
                encode_many.use_one_thread()
            self._model_cache = ModelCache(device, warn)
        found = self._model_cache.get(options, _kind(options), self.models_max)
        return found.engine(options), found.tokenizer


def _warn_of_few_cores(threads: int, warn: Callable[[str], None]) -> None:
    cores = len(os.sched_getaffinity(0))
    if threads > cores:
        warn(
            f"planned with --threads {threads}, but this worker has only {cores} "
            f"{'core' if cores == 1 else 'cores'}; it will be "
            f"slow, because the same number of threads is needed for the same results"
        )


def _kind(options: Mapping[str, Any]) -> str:
    """Return the kind in a claim's name, which identifies the loaded model: at most 32 bytes."""
    tag = DTYPE_TAGS[options["dtype"]]
    name = options["model"].rsplit("/", 1)[-1].lower()
    if options.get("adapter"):  # another model than that alone
        name = f"{name[:15]}_{options['adapter_hash'][-6:]}_{os.path.basename(options['adapter'])}"
    return re.sub(r"[^a-z0-9]+", "_", name)[: 32 - len(tag)].strip("_") + tag or "model"


@dataclass(frozen=True, slots=True)
class _Limit:
    """How long a sequence may be."""

    room: int
    """In letters, or in tokens without begin, end and prefix."""
    in_letters: bool

    @classmethod
    def of(cls, options: Mapping[str, Any], tokenizer: Tokenizer) -> _Limit:
        """Return the limit of a plan with these options."""
        most = int(options["max_residues"])
        if not isinstance(tokenizer, GenericTokenizer):
            return cls(most, in_letters=True)
        return cls(tokenizer.room(most), tokenizer.reads_letters)

    @property
    def sure(self) -> int:
        """Return how many letters always fit."""
        return self.room if self.in_letters else letters_sure(self.room)


def _too_long(
    path: str, longer: TooLong, limit: _Limit, letters: str, options: Mapping[str, Any]
) -> str:
    unit = letters if limit.in_letters else "tokens"
    line = f"{path}: {longer} longer than {limit.room:,} {unit}, and will be "
    if options["long"] == "window":
        return f"{line}read in windows."
    them = "it" if longer.count == 1 else "them"
    return f"{line}truncated; --long window reads {them} whole."


def _windows(options: Mapping[str, Any], convention: Convention, family: Family) -> dict[str, Any]:
    """Return the options with those about windows checked, and left out where there are none."""
    overlap, rest = options.get("overlap", 0), {**options}
    rest.pop("overlap", None)
    if options["long"] == "window":
        rest["windows"] = "equal"
    if not overlap:
        return rest
    if options["long"] != "window":
        raise UsageError(f"--overlap {overlap}: applies to windows only; add --long window.")
    if not 0 < overlap <= options["max_residues"] // 2:
        raise UsageError(
            f"--overlap {overlap}: must be at most half a window, {options['max_residues'] // 2:,} "
            f"of --max-residues {options['max_residues']:,}."
        )
    if convention.per_token and family.name == "dnabert":
        raise UsageError(
            "--overlap with --pooling per-token: DNABERT's tokens of two windows cannot be "
            "matched, because they differ with what is around them. Leave out --overlap."
        )
    return rest | {"overlap": overlap}


def _with_adapter(options: dict[str, Any], model: PinnedModel) -> dict[str, Any]:
    """Return the options with --adapter pinned: its hash is part of the weights' identity.

    Raises UsageError, NotSupportedError.
    """
    if not options.get("adapter"):
        return {name: value for name, value in options.items() if name != "adapter"}
    found = adapter.find(options["adapter"])
    notes = adapter.check_base(found, model.folder, model.name, model.family)
    return options | {
        "adapter": found.folder,
        "adapter_hash": found.digest,
        "weights": f"{model.weights}{hub.ADAPTED}{found.digest}",
        "content": f"{options['content']}{hub.ADAPTED}{found.digest}",
        "plan_notes": [*options["plan_notes"], *notes],
    }


def _provenance(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an output's header says about how its numbers were computed."""
    return {
        "model": options["model"],
        "revision": options["revision"],
        "weights": options["weights"],
        "dtype": options["dtype"],
        "pooling": options["pooling"],
        "pooled": Convention.of(options).describe(),
        "long": options["long"],
        **{name: str(options[name]) for name in WHERE_SET if name in options},
        "residues_max": str(options["max_residues"]),
        "versions": {name: version(name) for name in FAMILIES[options["family"]].libraries},
    }
