"""The `rag_ingestion` handler: embed the documents that a broadcast names into a store.

    fsqueue broadcast POOL --job-type rag_ingestion --job-data '{"documents": ["a.md", ...],
        "collection": "manuals", "chunk_size": 512}' --required-capability embeddings

Every worker gets all documents, or with --scatter its part of them. Workers with the same documents
share the work through the store alone: each begins with its own part of the groups of documents,
and before it computes a group it looks up what others have stored. It visits the other groups in a
random order; otherwise two workers that meet would continue side by side and compute everything
twice. Computing a group twice is harmless.

Vectors are stored after each group, so a killed worker loses at most one, and repeating the
broadcast completes the work.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from embed.handlers.embed import Embed
from embed.handlers.embed_claim import compute, reader_of
from embed.handlers.ingest_request import check_options, complete_request
from embed.inputs import documents
from embed.inputs.chunking import chunk_spans
from embed.inputs.chunks import Chunk, cut_chunks
from embed.models.generic.tokenizer import GenericTokenizer
from embed.store.reuse import Reuse
from fsqueue import BadInput, ClaimImpossible, Handler, Interrupted, Source, UsageError, Work

GROUP_BYTES_MIN: Final = 1 << 15
GROUP_BYTES_MAX: Final = 1 << 20
"""The size of a group of documents, which are looked up, computed and stored together."""
GROUPS: Final = 64
"""How many groups each worker's own part has, if there is enough to do."""
ERRORS_MAX: Final = 100
"""How many failed documents a report lists."""


Document = Mapping[str, str]
"""{"path"}, or {"name", "text"}."""


@dataclass(slots=True)
class Report:
    """What was done with a worker's documents. The counts of several workers can be added up."""

    documents: int = 0
    chunks: int = 0
    computed: int = 0
    store_hits: int = 0
    repeats: int = 0
    """Chunks equal to another of their group."""
    failed: int = 0
    errors: list[dict[str, str]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)


class Ingest(Handler):
    """Embed documents that a broadcast names; to plan files: fsqueue plan embed --text."""

    name = "rag_ingestion"
    suffix = ".json"
    unit = "documents"
    personal = True  # it names files to read, and copies their text to where others may read it

    def prepare(self, options: dict[str, Any]) -> dict[str, Any]:
        return check_options(options)

    def prepare_payload(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return the request with its documents resolved, the same for every worker."""
        return complete_request(data)

    def survey(self, path: str, options: Mapping[str, Any]) -> Source:
        raise BadInput(
            f"{path}: rag_ingestion is for fsqueue broadcast only. To plan documents: fsqueue plan "
            f"embed POOL {path} --text --model MODEL --store DIR"
        )

    def run(self, work: Work) -> None:
        """Ingest this worker's documents, and write the report."""
        embed = self.other_handler("embed")
        assert isinstance(embed, Embed)
        try:
            options = _options(work, embed)
        except UsageError as error:
            raise ClaimImpossible(str(error)) from error
        report = _Ingestion(work, embed, options).run()
        work.count(
            store_hits=report.store_hits, store_repeats=report.repeats, computed=report.computed
        )
        work.output.write_text(json.dumps(asdict(report), indent=1) + "\n")


def _options(work: Work, embed: Embed) -> dict[str, Any]:
    """Return the options of an equivalent `plan embed --text`. Raises UsageError."""
    data = work.payload
    model = data.get("model") or os.environ.get("FSQUEUE_TEXT_MODEL") or embed.text_model()
    if not model:
        raise UsageError(
            'no model is named: --job-data has no "model", FSQUEUE_TEXT_MODEL was not set when '
            "this worker started, and it has no text model loaded. Name one: a folder, or a hub id."
        )
    names = ("store", "collection", "chunk_size", "chunk_overlap")
    requested = {name: data[name] for name in names if name in data}
    defaults = {option.name: option.default for option in embed.options}
    options = embed.prepare(
        defaults | dict(work.options) | requested | {"model": model, "text": True}
    )
    if not options["store"]:
        raise UsageError(
            'no store is named: --job-data has no "store", and FSQUEUE_STORE was not set when this '
            "worker started. Name a directory that all workers can see."
        )
    return options


class _Ingestion:
    """One worker's share of a broadcast."""

    def __init__(self, work: Work, embed: Embed, options: dict[str, Any]) -> None:
        tokenizer, view = embed.tokenizer(options), embed.view(options)
        assert isinstance(tokenizer, GenericTokenizer) and view is not None
        self._tokenizer, self._view = tokenizer, view
        self._work = replace(work, options=options, report=self._on_progress)
        self._model = embed.model(self._work)
        self._report_progress = work.report
        self._groups = document_groups(work.payload, work.id)
        self._total = sum(map(len, self._groups))
        names = ("model", "weights", "store", "collection", "chunk_size", "chunk_overlap")
        self._report = Report(settings={name: options[name] for name in names})

    def run(self) -> Report:
        """Ingest group by group. Raises Interrupted; what was done is then in the store."""
        for group in self._groups:
            if self._work.stopping:
                raise Interrupted("stopped between two groups; finished ones are in the store")
            self._ingest([pair for document in group for pair in self._read(document)])
        return self._report

    def _read(self, document: Document) -> list[tuple[str, Chunk]]:
        """Return (input, chunk) pairs; for an invalid document none, and an error in the report."""
        try:
            found = self._chunks(document)
        except BadInput as error:
            self._refuse(document, error)
            return []
        self._report.documents += 1
        return found

    def _chunks(self, document: Document) -> list[tuple[str, Chunk]]:
        if "path" in document:
            data, name = documents.read(document["path"]), os.path.basename(document["path"])
        else:
            data, name = documents.encode(document["name"], document["text"]), document["name"]
        text, options = data.decode(), self._work.options
        size, overlap = options["chunk_size"], options["chunk_overlap"]
        found = chunk_spans(text, self._tokenizer.offsets, size, overlap)
        spans = ((span.begin, span.end) for span in found)
        return [(document.get("path", name), one) for one in cut_chunks(name, text, spans)]

    def _refuse(self, document: Document, error: BadInput) -> None:
        self._report.failed += 1
        self._work.warn(str(error))
        if len(self._report.errors) < ERRORS_MAX:
            name = document.get("path") or document["name"]
            self._report.errors.append({"document": name, "error": str(error)})

    def _ingest(self, group: list[tuple[str, Chunk]]) -> None:
        options, report = self._work.options, self._report
        reader = reader_of((chunk for _, chunk in group), self._model, options)
        reuse = Reuse(self._view, self._work, reader, lambda row: group[row][0])
        compute(self._work, self._model, reader, len(group), reuse)
        report.chunks += len(group)
        report.computed += reuse.counts.computed
        report.store_hits += reuse.counts.hits
        report.repeats += reuse.counts.repeats

    def _on_progress(self, _done: int, _total: int, measures: Mapping[str, int]) -> None:
        done = self._report.documents + self._report.failed
        self._report_progress(done, self._total, measures)


def document_groups(data: Mapping[str, Any], seed: str) -> list[list[Document]]:
    """Return the groups of documents of one copy of the broadcast, in the order to do them.

    With --scatter these are its part of the documents. Without, all copies have the same groups, in
    different orders.
    """
    if "shards" in data:
        mine = _grouped(data["documents"][data["shard"] :: data["shards"]], 1)
        return [group for group, _ in mine]
    copy, copies = data.get("copy", 0), data.get("copies", 1)
    groups = _grouped(data["documents"], copies)
    total, before = sum(size for _, size in groups), 0
    own: list[list[Document]] = []
    others: list[list[Document]] = []
    for group, size in groups:
        (own if copies * before // max(1, total) == copy else others).append(group)
        before += size
    random.Random(seed).shuffle(others)
    return own + others


def _grouped(every: list[Document], copies: int) -> list[tuple[list[Document], int]]:
    """Return runs of documents, and the size of each in bytes."""
    sizes = [_size(document) for document in every]
    bytes_max = min(max(GROUP_BYTES_MIN, sum(sizes) // (GROUPS * copies)), GROUP_BYTES_MAX)
    groups: list[tuple[list[Document], int]] = []
    for document, size in zip(every, sizes, strict=True):
        if groups and groups[-1][1] + size <= bytes_max:
            groups[-1] = [*groups[-1][0], document], groups[-1][1] + size
        else:
            groups.append(([document], size))
    return groups


def _size(document: Document) -> int:
    if "text" in document:
        return len(document["text"])
    try:
        return os.stat(document["path"]).st_size
    except OSError:
        return 0  # reading it will fail, and report it
