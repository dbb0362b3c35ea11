"""Every target returns the store's vectors, each once, with compactions and crashes meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embed.export import target
from embed.store import Store, scan, shard_names, view, writer
from embed.store.compact import compact
from embed.store.keys import hexadecimal
from embed.store.shards import StoreError
from fsqueue import NotSupportedError, UsageError
from fsqueue.storage import atomic
from tests.support.crash import CHANGES
from tests.support.export_targets import READERS, chroma_client, exported
from tests.support.processes import environment
from tests.support.stores import columns_of, keys_of, open_view, put, vectors_of

pytestmark = pytest.mark.slow
every_target = pytest.mark.parametrize("to", READERS)


def unit(vectors: Any) -> Any:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def filled(root: Path, shards: int = 3, each: int = 20) -> view.View:
    found = open_view(root)
    for number in range(shards):
        put(found, range(number * each, (number + 1) * each))
    return found


def same(to: str, root: Path, target: Path | str) -> int:
    """Assert that a target holds the vectors of the store; return how many."""
    found = READERS[to](target)  # type: ignore[arg-type]
    store = Store(root)
    expected = store.get(list(found))
    got = np.stack([row.vector for row in found.values()])
    if to == "faiss":
        np.testing.assert_allclose(got, unit(expected), rtol=3e-7)
    elif to == "chroma":
        np.testing.assert_allclose(got, expected, rtol=3e-7)  # it keeps unit vectors and lengths
    else:
        assert got.tobytes() == expected.tobytes()
    for hit, row in zip(store.records(list(found)), found.values(), strict=True):
        facts = [row.facts[name] for name in ("input", "record", "length")]
        assert facts == [hit.input, hit.record, hit.length]
        assert row.facts.get("collection", "default") == "default"
        assert row.facts.get("model", "tiny_esm2") == "tiny_esm2"
    return len(found)


@every_target
def test_the_same_vectors_are_exported_and_a_second_export_adds_only_new_ones(
    tmp_path: Path, to: str
) -> None:
    root, target = tmp_path / "store", tmp_path / "target"
    shards = filled(root)
    assert exported(to, root, target, dry_run=True).added == 60
    assert not target.exists()
    first = exported(to, root, target)
    assert (first.added, first.vectors, first.model) == (60, 60, "tiny_esm2")
    assert same(to, root, target) == 60
    assert exported(to, root, target).added == 0
    put(shards, range(30, 120))
    assert exported(to, root, target, dry_run=True).added == 60
    assert same(to, root, target) == 60
    assert exported(to, root, target).added == 60
    assert same(to, root, target) == 120
    compact(shards, grace_s=0)
    assert exported(to, root, target).added == 0
    assert same(to, root, target) == 120


@pytest.mark.parametrize("to", ["h5", "npz", "parquet"])
def test_a_file_is_unchanged_if_nothing_is_new(tmp_path: Path, to: str) -> None:
    filled(tmp_path / "store")
    exported(to, tmp_path / "store", tmp_path / "target")
    before = os.stat(tmp_path / "target")
    exported(to, tmp_path / "store", tmp_path / "target")
    after = os.stat(tmp_path / "target")
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


@every_target
def test_of_two_vectors_of_one_key_the_one_in_use_is_exported(
    tmp_path: Path, to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "store"
    first, second = open_view(root), open_view(root)
    stage = atomic.stage

    def overtaken(path: str, parts: Any) -> None:
        monkeypatch.setattr(atomic, "stage", stage)
        put(second, range(5))
        stage(path, parts)

    monkeypatch.setattr(atomic, "stage", overtaken)
    put(first, range(3, 8), "late")
    assert len(open_view(root).shards) == 2
    assert exported(to, root, tmp_path / "target").added == 8
    assert same(to, root, tmp_path / "target") == 8


@every_target
def test_an_empty_store_adds_nothing(tmp_path: Path, to: str) -> None:
    open_view(tmp_path / "store")
    assert exported(to, tmp_path / "store", tmp_path / "target").added == 0
    assert not (tmp_path / "target").exists()


@every_target
def test_any_name_and_half_precision_can_be_exported(tmp_path: Path, to: str) -> None:
    shards = open_view(tmp_path / "store", store_dtype="float16")
    names = ["a/../b", "tab\tand\nnewline", "no utf-8: \udcff", "NaN", ""]
    columns = replace(columns_of(range(5), 'in "quotes" \udcfe.faa'), ids=names)
    writer.add(shards, columns, vectors_of(range(5)))
    exported(to, tmp_path / "store", tmp_path / "target")
    found = READERS[to](tmp_path / "target")
    rows = [found[id] for id in hexadecimal(keys_of(range(5)))]
    valid = [*names[:2], "no utf-8: \\xff", *names[3:]]
    assert [row.facts["record"] for row in rows] == valid
    assert {row.facts["input"] for row in rows} == {'in "quotes" \\xfe.faa'}
    halves = vectors_of(range(5)).astype(np.float16).astype(np.float32)
    expected = unit(halves) if to == "faiss" else halves
    np.testing.assert_allclose(np.stack([row.vector for row in rows]), expected, rtol=3e-7)


@pytest.mark.parametrize("to", ["lancedb", "chroma", "faiss", "parquet"])
def test_embedded_texts_are_exported(tmp_path: Path, to: str) -> None:
    columns = replace(
        columns_of([1, 2], "manual.txt"),
        texts=["Press the button.", "Wait."],
        begins=np.array([40, 0]),
    )
    writer.add(open_view(tmp_path / "store"), columns, vectors_of([1, 2]))
    exported(to, tmp_path / "store", tmp_path / "target")
    found = READERS[to](tmp_path / "target")
    one = found[hexadecimal(keys_of([1]))[0]]
    expected = ("Press the button.", "manual.txt", 40)
    assert tuple(one.facts[name] for name in ("text", "input", "begin")) == expected


# ---- neighbours ----


@pytest.mark.parametrize("to", ["lancedb", "chroma", "faiss"])
def test_a_database_finds_the_neighbours_that_the_store_finds(tmp_path: Path, to: str) -> None:
    filled(tmp_path / "store", shards=4, each=50)
    exported(to, tmp_path / "store", tmp_path / "target")
    queries = vectors_of(range(1000, 1010))
    ids, scores = Store(tmp_path / "store").search(queries, 5)
    found, cosines = neighbours(to, tmp_path / "target", queries)
    assert found == ids.tolist()
    np.testing.assert_allclose(cosines, scores, atol=1e-5)


def neighbours(to: str, target: Path, queries: Any) -> tuple[list[list[str]], Any]:
    """Return the ids and cosines of the nearest five, as the database has them."""
    if to == "lancedb":
        import lancedb

        table = lancedb.connect(str(target)).open_table("default")
        every = [table.search(q).distance_type("cosine").limit(5).to_list() for q in queries]
        ids = [[row["id"] for row in rows] for rows in every]
        return ids, [[1 - row["_distance"] for row in rows] for rows in every]
    if to == "chroma":
        collection = chroma_client(target).get_collection("default", embedding_function=None)
        found = collection.query(query_embeddings=queries, n_results=5, include=["distances"])
        return found["ids"], 1 - np.array(found["distances"])
    import faiss

    scores, rows = faiss.read_index(str(target)).search(np.float32(unit(queries)), 5)
    names = list(READERS[to](target))
    return [[names[row] for row in each] for each in rows], scores


# ---- compactions beside an export ----


@every_target
def test_an_export_continues_while_shards_are_compacted_away(
    tmp_path: Path, to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "store"
    filled(root, shards=4)
    monkeypatch.setattr(target, "BLOCK_BYTES", 4 * 8 * 7)
    real, batches = scan.Batch, 0

    def compacting(*args: Any) -> Any:
        nonlocal batches
        batches += 1
        if batches == 5:  # in the middle of the second shard
            assert compact(open_view(root), grace_s=0).removed == 4
        return real(*args)

    monkeypatch.setattr(scan, "Batch", compacting)
    assert exported(to, root, tmp_path / "target").added == 80
    monkeypatch.setattr(scan, "Batch", real)
    assert same(to, root, tmp_path / "target") == 80


@pytest.mark.parametrize("attempts", [1, 12])
def test_a_reader_waits_for_listings_that_are_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attempts: int
) -> None:
    """The mount shows what was there before a compaction, and what it shows is gone."""
    shards = filled(tmp_path / "store")
    reader, old = open_view(tmp_path / "store"), shard_names.list_shards(shards.directory)
    compact(shards, grace_s=0)
    waited: list[float] = []
    monkeypatch.setattr("embed.store.view.time.sleep", waited.append)
    real = shard_names.list_shards
    monkeypatch.setattr(
        shard_names, "list_shards", lambda d: old if len(waited) < attempts else real(d)
    )
    found, vectors = reader.lookup(keys_of(range(60)))
    assert found.all() and vectors.tobytes() == vectors_of(range(60)).tobytes()
    waited.clear()
    fresh = open_view(tmp_path / "store")
    assert [shard.count for shard in fresh.shards] == [60]


def test_a_reader_gives_up_if_listings_stay_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = filled(tmp_path / "store")
    reader, old = open_view(tmp_path / "store"), shard_names.list_shards(shards.directory)
    compact(shards, grace_s=0)
    waited: list[float] = []
    monkeypatch.setattr("embed.store.view.time.sleep", waited.append)
    monkeypatch.setattr(shard_names, "list_shards", lambda _directory: old)
    with pytest.raises(StoreError, match="listed files that do not exist"):
        reader.lookup(keys_of(range(60)))
    assert sum(waited) > 30


def test_a_shard_that_something_else_removed_ends_the_scan(tmp_path: Path) -> None:
    shards = filled(tmp_path / "store")
    keys = scan.all_keys(shards)
    os.unlink(shards.shards[1].path)
    with pytest.raises(StoreError, match="20 vectors no longer exist"):
        list(scan.scan(shards, keys, 100))


# ---- crashes ----


@pytest.mark.parametrize("to", ["faiss", "h5", "npz", "parquet"])
def test_a_crash_while_writing_leaves_the_old_file_or_the_new(
    tmp_path: Path, to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, target = tmp_path / "store", tmp_path / "target"
    shards = filled(root)
    exported(to, root, target)
    steps = 0
    put(shards, range(60, 90))
    while True:
        steps += 1
        left = steps

        def dying(real: Any) -> Any:
            def call(*args: Any, **how: Any) -> Any:
                nonlocal left
                left -= 1
                if not left:
                    raise SystemExit("killed")
                return real(*args, **how)

            return call

        with monkeypatch.context() as patch:
            for verb in (*CHANGES, "open"):
                patch.setattr(os, verb, dying(getattr(os, verb)))
            try:
                exported(to, root, target)
            except SystemExit:
                pass
            else:
                break
        assert same(to, root, target) in (60, 90)
    assert steps > 4
    assert exported(to, root, target).added == 0
    assert same(to, root, target) == 90
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


@pytest.mark.parametrize("at", [1, 4])
@pytest.mark.parametrize("to", ["lancedb", "chroma", "parquet"])
def test_an_export_that_was_killed_is_completed_by_the_next(
    tmp_path: Path, to: str, at: int
) -> None:
    root, target = tmp_path / "store", tmp_path / "target"
    filled(root)
    command = [sys.executable, "-m", "tests.support.export_targets", to, root, target]
    killed = subprocess.run([*command, str(at)], env=environment(), capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    rest = exported(to, root, target).added
    assert rest == 60 if to == "parquet" or (to, at) == ("lancedb", 1) else 0 < rest < 60
    assert same(to, root, target) == 60
    assert exported(to, root, target).added == 0


# ---- what is refused ----


@pytest.mark.parametrize("to", ["lancedb", "chroma"])
def test_a_table_of_another_model_is_refused_and_can_get_another_name(
    tmp_path: Path, to: str
) -> None:
    filled(tmp_path / "one")
    put(open_view(tmp_path / "two", pooling="cls"), range(5))
    exported(to, tmp_path / "one", tmp_path / "target")
    with pytest.raises(UsageError, match="--name"):
        exported(to, tmp_path / "two", tmp_path / "target")
    assert exported(to, tmp_path / "two", tmp_path / "target", name="other").added == 5
    assert same(to, tmp_path / "one", tmp_path / "target") == 60


@pytest.mark.parametrize("to", ["faiss", "h5", "npz", "parquet"])
def test_a_file_that_holds_what_is_missing_in_the_store_is_refused(tmp_path: Path, to: str) -> None:
    filled(tmp_path / "one")
    put(open_view(tmp_path / "two"), range(55, 65))
    exported(to, tmp_path / "one", tmp_path / "target")
    with pytest.raises(UsageError, match="Name another TARGET"):
        exported(to, tmp_path / "two", tmp_path / "target")
    assert same(to, tmp_path / "one", tmp_path / "target") == 60


@pytest.mark.parametrize(("to", "library"), [("lancedb", "lancedb"), ("chroma", "chromadb"),
                                             ("faiss", "faiss"), ("h5", "h5py"),
                                             ("parquet", "pyarrow")])  # fmt: skip
def test_a_missing_library_is_named_with_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str, library: str
) -> None:
    filled(tmp_path / "store")
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(NotSupportedError, match=rf"pip install 'fsqueue\[{to}\]'"):
        exported(to, tmp_path / "store", tmp_path / "target")


def test_R37_the_records_of_an_index_replace_only_their_own(tmp_path: Path) -> None:
    filled(tmp_path / "store")
    (tmp_path / "x.faiss.jsonl").write_text("notes of mine\n")
    with pytest.raises(UsageError, match="never replaces"):
        exported("faiss", tmp_path / "store", tmp_path / "x.faiss")
    assert (tmp_path / "x.faiss.jsonl").read_text() == "notes of mine\n"


# ---- indexes ----


def neighbours_of_faiss(target: Path, query: Any, k: int) -> list[str]:
    import faiss

    index = faiss.read_index(str(target))
    if hasattr(index, "nprobe"):
        index.nprobe = 8
    _, rows = index.search(unit(query).astype(np.float32), k)
    ids = [json.loads(line)["id"] for line in Path(f"{target}.jsonl").read_text().splitlines()]
    return [ids[row] for row in rows[0]]


@pytest.mark.parametrize("index", ["IVF8,Flat", "HNSW16", "IVF8,SQ8"])
def test_a_faiss_index_of_another_kind_finds_the_neighbours(tmp_path: Path, index: str) -> None:
    root, target = tmp_path / "store", tmp_path / "x.faiss"
    found = filled(root, each=200)
    assert exported("faiss", root, target, index=index).added == 600
    put(found, range(600, 700))
    assert exported("faiss", root, target).added == 100  # of the kind that it is
    store = Store(root)
    query = vectors_of(range(650, 651))
    exact = store.search(query, 5)[0][0].tolist()
    near = neighbours_of_faiss(target, query, 5)
    assert near[0] == exact[0] and len({*near} & {*exact}) >= 4
    assert exported("faiss", root, target, index=index).added == 0
    with pytest.raises(UsageError, match="is an index of another kind .* than IVF4,Flat"):
        exported("faiss", root, target, index="IVF4,Flat")


def test_an_index_that_cannot_be_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    root = tmp_path / "store"
    filled(root)
    with pytest.raises(UsageError, match="--index Bogus: faiss makes no index of it"):
        exported("faiss", root, tmp_path / "x.faiss", index="Bogus")
    with pytest.raises(UsageError, match="needs more vectors to be trained on than .*, 60"):
        exported("faiss", root, tmp_path / "x.faiss", index="IVF4096,Flat")
    with pytest.raises(UsageError, match="LanceDB's indexes are IVF_FLAT"):
        exported("lancedb", root, tmp_path / "db", index="HNSW32")
    with pytest.raises(UsageError, match="only faiss and lancedb have indexes"):
        exported("npz", root, tmp_path / "x.npz", index="Flat")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


@pytest.mark.parametrize("index", ["IVF_FLAT", "ivf_hnsw_sq"])
def test_lancedb_s_own_index_is_built_and_extended(tmp_path: Path, index: str) -> None:
    import lancedb

    root, target = tmp_path / "store", tmp_path / "db"
    found = filled(root, each=100)
    exported("lancedb", root, target)
    assert exported("lancedb", root, target, index=index).added == 0  # also of what is there
    put(found, range(300, 400))
    assert exported("lancedb", root, target).added == 100
    table = lancedb.connect(str(target)).open_table("default")
    (only,) = table.list_indices()
    stats = table.index_stats(only.name)
    assert (stats.index_type, stats.distance_type) == (index.upper(), "cosine")
    assert stats.num_indexed_rows + stats.num_unindexed_rows == 400
    query = vectors_of(range(350, 351))
    rows = table.search(query[0]).distance_type("cosine").limit(5).to_list()
    exact = Store(root).search(query, 5)[0][0].tolist()
    assert rows[0]["id"] == exact[0]


def test_lancedb_builds_no_index_of_a_few_vectors(tmp_path: Path) -> None:
    root = tmp_path / "store"
    filled(root)
    with pytest.raises(UsageError, match="of 256 vectors and more, and the table has 60 now"):
        exported("lancedb", root, tmp_path / "db", index="IVF_PQ")
    assert same("lancedb", root, tmp_path / "db") == 60
