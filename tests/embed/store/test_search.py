"""Search is exact, in bounded memory, and names the origin of every hit."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from embed.store import Store, search
from embed.store.compact import compact
from embed.store.keys import hexadecimal
from fsqueue import UsageError
from tests.support.stores import keys_of, open_view, put, vectors_of


def cosines(queries: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    a, b = queries.astype(np.float64), vectors.astype(np.float64)
    return (a @ b.T) / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)


@pytest.mark.parametrize("stored", ["float32", "float16"])
@pytest.mark.parametrize("block", [64, 1 << 24])
def test_the_nearest_are_those_that_a_plain_comparison_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: str, block: int
) -> None:
    monkeypatch.setattr(search, "BLOCK_BYTES", block)
    view = open_view(tmp_path / "store", store_dtype=stored)
    for start in range(0, 300, 50):
        put(view, range(start, start + 50))
    queries = vectors_of(range(1000, 1020))
    ids, scores = Store(tmp_path / "store").search(queries, 7)
    vectors = vectors_of(range(300)).astype(stored)
    expected = cosines(queries, vectors)
    order = np.argsort(-expected, axis=1)[:, :7]
    names = np.array(hexadecimal(keys_of(range(300))))
    np.testing.assert_array_equal(ids, names[order])
    np.testing.assert_allclose(scores, np.take_along_axis(expected, order, 1), atol=1e-6)


def test_a_key_in_two_shards_is_one_hit(tmp_path: Path) -> None:
    view = open_view(tmp_path / "store")
    put(view, range(40))
    # What two writers of one moment leave behind: the same keys under two numbers.
    data = Path(view.shards[0].path).read_bytes()
    for number in range(2, 6):
        (Path(view.directory) / f"{number:08}.safetensors").write_bytes(data)
    ids, _ = Store(tmp_path / "store").search(vectors_of([3]), 30)
    assert len(set(ids[0])) == 30
    assert ids[0, 0] == hexadecimal(keys_of([3]))[0]


def test_fewer_hits_where_the_store_holds_fewer(tmp_path: Path) -> None:
    put(open_view(tmp_path / "store"), range(3))
    ids, scores = Store(tmp_path / "store").search(vectors_of([0, 1]), 10)
    assert ids.shape == scores.shape == (2, 3)


def test_an_empty_space_has_no_hits(tmp_path: Path) -> None:
    open_view(tmp_path / "store")
    ids, scores = Store(tmp_path / "store").search(vectors_of([0]), 10)
    assert ids.shape == scores.shape == (1, 0)


def test_hits_name_their_origin(tmp_path: Path) -> None:
    put(open_view(tmp_path / "store"), range(20))
    store = Store(tmp_path / "store")
    ids = hexadecimal(keys_of([7, 3]))
    assert [(hit.input, hit.record, hit.length) for hit in store.records(ids)] == [
        ("a.faa", "record7", 7),
        ("a.faa", "record3", 3),
    ]
    assert store.get(ids).tobytes() == vectors_of([7, 3]).tobytes()
    with pytest.raises(KeyError, match="ab"):
        store.get(["ab" * 16])
    with pytest.raises(KeyError, match="ab"):
        store.records(["ab" * 16])


def test_a_reader_continues_while_shards_are_compacted_away(tmp_path: Path) -> None:
    view = open_view(tmp_path / "store")
    for start in range(0, 60, 10):
        put(view, range(start, start + 10))
    reader = open_view(tmp_path / "store")
    compact(view, grace_s=0)
    rows, _ = search.nearest(reader, vectors_of([33]), 5)
    assert search.keys_of(reader.shards, rows[0])[0] == keys_of([33])[0]
    assert len(reader.shards) == 1


def test_vectors_that_are_added_later_are_found(tmp_path: Path) -> None:
    view = open_view(tmp_path / "store")
    store = Store(tmp_path / "store")
    put(view, [1])
    assert store.search(vectors_of([2]), 1)[0][0, 0] == hexadecimal(keys_of([1]))[0]
    put(view, [2])
    assert store.search(vectors_of([2]), 1)[0][0, 0] == hexadecimal(keys_of([2]))[0]


def test_invalid_queries_and_stores_are_refused(tmp_path: Path) -> None:
    put(open_view(tmp_path / "store"), range(3))
    with pytest.raises(UsageError, match="tiny_esm2"):
        Store(tmp_path / "store").search(np.zeros((1, 5)))
    with pytest.raises(UsageError, match="is not a store"):
        Store(tmp_path / "none")
    with pytest.raises(UsageError, match="it has: default"):
        Store(tmp_path / "store", "manuals")
    open_view(tmp_path / "store", pooling="cls")
    with pytest.raises(UsageError, match="2 of the 2 spaces"):
        Store(tmp_path / "store")
    name = os.path.basename(open_view(tmp_path / "store", pooling="cls").directory)
    assert Store(tmp_path / "store", model=name).space.pooling == "cls"
