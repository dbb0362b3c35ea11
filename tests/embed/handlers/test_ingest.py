"""Workers ingest the documents of a broadcast into one store, and share the work through it."""

from __future__ import annotations

import json
import random
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from embed.handlers.ingest import GROUP_BYTES_MAX, GROUP_BYTES_MIN, document_groups
from embed.handlers.ingest_request import check_options, complete_request
from embed.store import Store
from embed.store.spaces import list_spaces
from fsqueue import UsageError
from fsqueue.broadcast import broadcast
from fsqueue.broadcast.broadcast import BroadcastRequest
from fsqueue.pool.inbox import Inbox
from fsqueue.pool.settings import PoolDirectory, create_pool
from fsqueue.worker.attempts.verdicts import Cause
from tests.support.generic_models import TEXTS, write_model
from tests.support.ingestion import broadcast_to_new_worker, run_inbox, send, start_worker

SENTENCES = [text for text in TEXTS if text]
WORDS = " ".join(SENTENCES).split()


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "bert", "bert")


@pytest.fixture
def pool(tmp_path: Path) -> PoolDirectory:
    return create_pool(str(tmp_path / "pool"))


@pytest.fixture
def data(tmp_path: Path, bert: Path) -> dict[str, Any]:
    """A guide of many groups, and two notes."""
    paths = []
    for number in range(8):
        paths.append(tmp_path / f"guide{number}.md")
        words = random.Random(number).choices(WORDS, k=500)
        paths[-1].write_text(f"Guide {number}\n\n{' '.join(words)}.\n")
    return {
        "documents": [*map(str, paths), "A worker takes a claim by renaming it.", *SENTENCES[:1]],
        "collection": "manuals",
        "chunk_size": 512,
        "store": str(tmp_path / "store"),
        "model": str(bert),
    }


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embed.handlers.ingest.GROUP_BYTES_MIN", 2000)
    monkeypatch.setattr("embed.handlers.ingest.GROUP_BYTES_MAX", 4000)


def stored(root: str) -> int:
    ((_, view),) = list_spaces(root)
    view.refresh()
    return len({bytes(key) for shard in view.shards for key in shard.keys})


def test_replicas_converge_and_the_second_computes_nothing(
    pool: PoolDirectory, data: dict[str, Any], computed: list[int]
) -> None:
    workers = [start_worker(pool), start_worker(pool)]
    sent = send(pool, data)
    for worker in workers:
        run_inbox(worker)
    broadcast.update_outcomes(pool, sent.copies)
    results = {copy.worker: copy.result for copy in sent.copies}
    one, two = (results[worker.id] for worker in workers)
    distinct = stored(data["store"])
    assert one["documents"] == two["documents"] == 10 and one["failed"] == 0
    assert one["chunks"] == two["chunks"] == two["store_hits"] + two["repeats"]
    assert (one["computed"], two["computed"]) == (distinct, 0) and sum(computed) == distinct
    assert one["settings"]["chunk_size"] == 62
    totals = sent.outcome()["totals"]
    assert totals["computed"] == distinct and totals["chunks"] == 2 * one["chunks"]
    events = [json.loads(line) for path in Path(pool.root, "events").iterdir()
              for line in path.read_text().splitlines()]  # fmt: skip
    assert sum(e.get("computed", 0) for e in events if e["event"] == "finished") == distinct


def test_a_second_broadcast_neither_loads_nor_calls_the_model(
    pool: PoolDirectory, data: dict[str, Any], computed: list[int]
) -> None:
    assert broadcast_to_new_worker(pool, data).outcome == "done" and computed
    computed.clear()
    worker = start_worker(pool)
    sent = send(pool, data)
    run_inbox(worker)
    assert computed == [] and worker.status.loaded == []
    broadcast.update_outcomes(pool, sent.copies)
    assert sent.copies[-1].result["computed"] == 0


def test_with_scatter_each_has_its_part(pool: PoolDirectory, data: dict[str, Any]) -> None:
    workers = [start_worker(pool) for _ in range(3)]
    sent = send(pool, data, scatter=True)
    for worker in workers:
        run_inbox(worker)
    broadcast.update_outcomes(pool, sent.copies)
    assert sorted(copy.result["documents"] for copy in sent.copies) == [3, 3, 4]
    assert sent.totals()["computed"] + sent.totals()["repeats"] == sent.totals()["chunks"]
    assert stored(data["store"]) == sent.totals()["computed"]


def test_hits_name_document_chunk_and_position(pool: PoolDirectory, data: dict[str, Any]) -> None:
    broadcast_to_new_worker(
        pool, {**data, "documents": [data["documents"][0], {"name": "b", "text": SENTENCES[1]}]}
    )
    store = Store(data["store"], "manuals")
    view = store.view
    view.refresh()
    facts = [fact for shard in view.shards for fact in shard.provenance(list(range(shard.count)))]
    document = Path(data["documents"][0]).read_text()
    for input, record, length, text, begin in facts:
        if record == "b#1":
            assert (input, text, begin) == ("b", SENTENCES[1], 0)
            continue
        assert input == data["documents"][0] and record.startswith("guide0.md#")
        assert document[begin : begin + length] == text
    assert {record for _, record, _, _, _ in facts} > {"b#1", "guide0.md#1", "guide0.md#5"}


def test_a_bad_document_fails_by_name_and_the_rest_is_ingested(
    pool: PoolDirectory, data: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff\0")
    bad = [str(tmp_path / "photo.jpg"), str(tmp_path / "gone.md"), {"name": "n", "text": "a\0"}]
    copy = broadcast_to_new_worker(pool, {**data, "documents": [*bad, *data["documents"]]})
    assert copy.outcome == "done"
    assert copy.result["documents"] == 10 and copy.result["failed"] == 3
    named = {one["document"]: one["error"] for one in copy.result["errors"]}
    assert "binary" in named[str(tmp_path / "photo.jpg")]
    assert "No such file" in named[str(tmp_path / "gone.md")] and "NUL" in named["n"]


@pytest.mark.parametrize(
    ("missing", "words"), [("model", "FSQUEUE_TEXT_MODEL"), ("store", "FSQUEUE_STORE")]
)
def test_a_missing_model_or_store_is_reported(
    pool: PoolDirectory, data: dict[str, Any], missing: str, words: str
) -> None:
    copy = broadcast_to_new_worker(
        pool, {name: value for name, value in data.items() if name != missing}
    )
    assert copy.outcome == "failed"
    assert f"no {missing} is named" in copy.error and words in copy.error


def test_a_model_that_reads_no_text_is_refused(
    pool: PoolDirectory, data: dict[str, Any], tiny_model: Path
) -> None:
    copy = broadcast_to_new_worker(pool, {**data, "model": str(tiny_model)})
    assert copy.outcome == "failed" and "reads residues or bases" in copy.error


def test_a_worker_uses_the_text_model_that_it_has_loaded(
    pool: PoolDirectory, data: dict[str, Any], bert: Path, computed: list[int]
) -> None:
    worker = start_worker(pool)
    warm = {"handler": "embed", "options": {"model": str(bert)}}
    sent = broadcast.broadcast(pool, BroadcastRequest("warmup", warm))
    run_inbox(worker)
    nameless = {name: value for name, value in data.items() if name != "model"}
    sent = send(pool, nameless)
    run_inbox(worker)
    broadcast.update_outcomes(pool, sent.copies)
    assert sent.copies[0].result["computed"] == sum(computed) > 0
    assert worker.status.loaded == ["bert"], "one copy of the model serves both handlers"


@pytest.mark.parametrize("where", ["sender", "worker"])
def test_the_environment_may_name_model_and_store(
    pool: PoolDirectory, data: dict[str, Any], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    plain = {"documents": data["documents"][:1], "collection": "manuals"}
    worker = start_worker(pool)
    with monkeypatch.context() as patched:
        for name, value in (("TEXT_MODEL", data["model"]), ("STORE", data["store"])):
            patched.setenv(f"FSQUEUE_{name}", value)
        if where == "sender":
            sent = send(pool, plain)
    if where == "worker":
        sent = send(pool, plain)
        for name, value in (("TEXT_MODEL", data["model"]), ("STORE", data["store"])):
            monkeypatch.setenv(f"FSQUEUE_{name}", value)
    run_inbox(worker)
    broadcast.update_outcomes(pool, sent.copies)
    assert sent.copies[0].outcome == "done", sent.copies[0].error
    assert stored(data["store"]) > 0


def test_the_next_worker_completes_what_an_interrupted_one_began(
    pool: PoolDirectory, data: dict[str, Any], computed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = start_worker(pool)
    sent = send(pool, data)
    looks = count()
    with monkeypatch.context() as patched:
        patched.setattr(
            type(worker.shutdown),
            "interruption",
            lambda _: Cause.LEAVING if next(looks) == 5 else None,
        )
        name = Inbox(pool, worker.id).next()
        assert name is not None
        worker._run_addressed(name)
    worker._leave()
    broadcast.update_outcomes(pool, sent.copies)
    assert sent.copies[0].outcome == "failed" and "left before" in sent.copies[0].error
    done = sum(computed)
    assert 0 < done == stored(data["store"])
    copy = broadcast_to_new_worker(pool, data)
    assert copy.result["computed"] == stored(data["store"]) - done > 0
    assert sum(computed) == stored(data["store"])


def test_planning_it_is_refused_with_the_right_command(pool: PoolDirectory, tmp_path: Path) -> None:
    from fsqueue import BadInput
    from fsqueue.handler import load_handler

    with pytest.raises(BadInput, match="plan embed POOL x.md --text"):
        load_handler("rag_ingestion").survey("x.md", {})


# ---- who does what ----


def order(number: int, copies: int, documents: list[dict[str, str]]) -> list[list[str]]:
    data = {"documents": documents, "copy": number, "copies": copies}
    return [[one["name"] for one in group] for group in document_groups(data, f"job-{number}")]


def test_replicas_have_the_same_groups_and_begin_with_different_ones() -> None:
    sizes = [(7 * n) % 13 + 1 for n in range(200)]
    documents = [{"name": str(n), "text": "x" * (97 * size)} for n, size in enumerate(sizes)]
    orders = [order(number, 3, documents) for number in range(3)]
    groups = [sorted(one) for one in orders]
    assert groups[0] == groups[1] == groups[2]
    assert sorted(name for group in orders[0] for name in group) == sorted(map(str, range(200)))
    third = len(orders[0]) // 3 - 2
    first = [{tuple(group) for group in one[:third]} for one in orders]
    assert not first[0] & first[1] and not first[1] & first[2] and not first[0] & first[2]
    assert orders[0][-third:] != orders[1][-third:], "they would continue side by side"


def test_groups_grow_with_the_work_and_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embed.handlers.ingest.GROUP_BYTES_MIN", GROUP_BYTES_MIN)
    monkeypatch.setattr("embed.handlers.ingest.GROUP_BYTES_MAX", GROUP_BYTES_MAX)
    few = [{"name": str(n), "text": "x" * 10_000} for n in range(20)]
    assert {len(group) for group in order(0, 1, few)} <= {3, 2}
    many = few * 40
    assert max(len(group) for group in order(0, 1, many)) == 12
    assert order(0, 1, [{"name": "a", "text": ""}]) == [["a"]]
    assert order(1, 2, [{"name": "a", "text": ""}]) == [["a"]]


# ---- the data ----


def test_strings_are_paths_or_texts_and_what_is_unclear_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes").mkdir()
    for name in ("notes/b.md", "notes/a.md", "notes/.hidden", "my note.txt"):
        (tmp_path / name).write_text("x")
    named = [{"path": "d.md"}, {"name": "e", "text": "E."}]
    strings = ["notes", "my note.txt", "/elsewhere/c.txt", "A sentence.", "word"]
    found = complete_request({"documents": [*strings, *named]})
    paths = [f"{tmp_path}/notes/a.md", f"{tmp_path}/notes/b.md", f"{tmp_path}/my note.txt"]
    assert found["documents"][:4] == [{"path": path} for path in [*paths, "/elsewhere/c.txt"]]
    assert [one["text"] for one in found["documents"][4:6]] == ["A sentence.", "word"]
    assert found["documents"][4]["name"].startswith("text-")
    assert found["documents"][6:] == [{"path": f"{tmp_path}/d.md"}, {"name": "e", "text": "E."}]
    for unclear in ("gone.md", "notes/gone", "my other note.txt"):
        with pytest.raises(UsageError, match=f"{unclear}.*looks like a path"):
            complete_request({"documents": [unclear]})


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({}, "missing or empty"),
        ({"documents": []}, "missing or empty"),
        ({"documents": "a.md"}, "wrong type"),
        ({"documents": [3]}, "3 is neither"),
        ({"documents": [" "]}, "is neither"),
        ({"documents": [{"name": "", "text": "x"}]}, "is neither"),
        ({"documents": [{"text": "x"}]}, "is neither"),
        ({"documents": ["x"], "chunk_size": "512"}, "wrong type"),
        ({"documents": ["x"], "chunk_size": True}, "wrong type"),
        ({"documents": ["x"], "chunksize": 512}, "'chunksize' in --job-data is unknown"),
    ],
)
def test_data_that_cannot_be_right_are_refused_before_anything_is_sent(
    data: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        complete_request(data)


def test_options_of_embedding_are_checked_by_name_and_type() -> None:
    assert check_options({"dtype": "bfloat16", "threads": 2}) == {"dtype": "bfloat16", "threads": 2}
    for wrong in ({"dtype": "int8"}, {"threads": "2"}, {"model": "x"}, {"nonsense": 1}):
        with pytest.raises(UsageError, match='"options" in --job-data'):
            check_options(wrong)
