"""The `rag_ingestion` job: embed the documents that a broadcast names into a store.

    fsqueue broadcast POOL --job-type rag_ingestion --job-data '{"documents": ["a.md", ...],
        "collection": "manuals", "chunk_size": 512}' --required-capability embeddings

Every worker gets all documents, or with --scatter its part of them. Replicas share the work all the
same, by the store alone: each begins with an arc of its own, in groups of documents, and looks up
what others have stored before it computes a group. The rest it visits in an order of its own, or
two that meet would go on side by side and compute everything twice. What they do compute twice, as
they cannot see what the other is at, is harmless.

What a worker computed is in the store from group to group, so whoever is killed or sent away leaves
it there, and the same broadcast once more does the rest.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from embed.handlers import claim
from embed.handlers.embed import Embed
from embed.handlers.ingest_request import checked, completed
from embed.inputs import documents
from embed.inputs.chunk_ranges import Chunk, chunks_of
from embed.inputs.chunks import spans
from embed.models.generic.tokens import GenericTokens
from embed.store.reuse import Reuse
from fsqueue import BadInput, ClaimImpossible, Handler, Interrupted, Source, UsageError, Work

GROUP_BYTES: Final = (1 << 15, 1 << 20)
"""Documents of about so many bytes are looked up, computed and stored together, least and most."""
GROUPS: Final = 64
"""So many groups has each worker's arc if there is enough to do."""
ERRORS_MAX: Final = 100
"""A report names so many documents that failed."""


Document = Mapping[str, str]
"""{"path"}, or {"name", "text"}."""


@dataclass(slots=True)
class Report:
    """What became of a worker's documents; what is counted adds up over workers."""

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

    suffix = ".json"
    unit = "documents"
    personal = True  # it says which files to read, and their text goes where others may read it

    def prepare(self, options: dict[str, Any]) -> dict[str, Any]:
        return checked(options)

    def prepare_payload(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return the job's data with its documents found, as every worker is to see them."""
        return completed(data)

    def survey(self, path: str, options: Mapping[str, Any]) -> Source:
        raise BadInput(
            f"{path}: rag_ingestion is a job for fsqueue broadcast. To plan documents: fsqueue "
            f"plan embed POOL {path} --text --model MODEL --store DIR"
        )

    def run(self, work: Work) -> None:
        """Ingest this worker's documents, and write the report."""
        embed = self.other_handler("embed")
        assert isinstance(embed, Embed)
        try:
            options = _options(work, embed)
        except UsageError as error:
            raise ClaimImpossible(str(error)) from error
        report = _Run(work, embed, options).run()
        work.count(
            store_hits=report.store_hits, store_repeats=report.repeats, computed=report.computed
        )
        work.output.write_text(json.dumps(asdict(report), indent=1) + "\n")


def _options(work: Work, embed: Embed) -> dict[str, Any]:
    """Return what `plan embed --text` would say. Raises UsageError, naming what is missing."""
    data = work.payload
    model = data.get("model") or os.environ.get("FSQUEUE_TEXT_MODEL") or embed.text_model()
    if not model:
        raise UsageError(
            'no model is named: not as "model" in --job-data, not by FSQUEUE_TEXT_MODEL where this '
            "worker was started, and it has not loaded one that reads text. Name one: a folder, or "
            "a hub id."
        )
    given = {name: data[name] for name in ("store", "collection", "chunk_size", "chunk_overlap")
             if name in data}  # fmt: skip
    defaults = {option.name: option.default for option in embed.options}
    options = embed.prepare(defaults | dict(work.options) | given | {"model": model, "text": True})
    if not options["store"]:
        raise UsageError(
            'no store is named: not as "store" in --job-data, and not by FSQUEUE_STORE where this '
            "worker was started. Name a directory that all workers see."
        )
    return options


class _Run:
    """One worker's share of a broadcast."""

    def __init__(self, work: Work, embed: Embed, options: dict[str, Any]) -> None:
        tokens, view = embed.tokens(options), embed.view(options)
        assert isinstance(tokens, GenericTokens) and view is not None
        self._tokens, self._view = tokens, view
        self._work = replace(work, options=options, report=self._progress)
        self._model = embed.model(self._work)
        self._tell = work.report
        self._groups = shared(work.payload, work.id)
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
        """Return (input, chunk) pairs; none, and a line in the report, if it is no document."""
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
            data, name = documents.of_text(document["name"], document["text"]), document["name"]
        text, options = data.decode(), self._work.options
        found = spans(text, self._tokens.places, options["chunk_size"], options["chunk_overlap"])
        places = ((span.begin, span.end) for span in found)
        return [(document.get("path", name), one) for one in chunks_of(name, text, places)]

    def _refuse(self, document: Document, error: BadInput) -> None:
        self._report.failed += 1
        self._work.warn(str(error))
        if len(self._report.errors) < ERRORS_MAX:
            name = document.get("path") or document["name"]
            self._report.errors.append({"document": name, "error": str(error)})

    def _ingest(self, group: list[tuple[str, Chunk]]) -> None:
        options, report = self._work.options, self._report
        reading = claim.reading_of((chunk for _, chunk in group), self._model, options)
        reuse = Reuse(self._view, self._work, reading, lambda row: group[row][0])
        claim.compute(self._work, self._model, reading, len(group), reuse)
        report.chunks += len(group)
        report.computed += reuse.tally.computed
        report.store_hits += reuse.tally.hits
        report.repeats += reuse.tally.repeats

    def _progress(self, _done: int, _total: int, measures: Mapping[str, int]) -> None:
        done = self._report.documents + self._report.failed
        self._tell(done, self._total, measures)


def shared(data: Mapping[str, Any], seed: str) -> list[list[Document]]:
    """Return the groups of a copy's documents, in the order in which it is to do them.

    A part of them with scatter, else all. The groups are the same for all replicas; their orders
    are not.
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
    """Return runs of documents, and how many bytes each has."""
    sizes = [_size(document) for document in every]
    least, most = GROUP_BYTES
    enough = min(max(least, sum(sizes) // (GROUPS * copies)), most)
    groups: list[tuple[list[Document], int]] = []
    for document, size in zip(every, sizes, strict=True):
        if groups and groups[-1][1] + size <= enough:
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
        return 0  # it will be refused by name
