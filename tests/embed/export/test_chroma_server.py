"""Export to a real Chroma server on loopback, by the command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from embed.store import Store
from tests.support.export_targets import chroma_client, chroma_server, of_chroma
from tests.support.processes import fsqueue
from tests.support.stores import open_view, put, vectors_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with chroma_server(tmp_path_factory.mktemp("chroma")) as url:
        yield url


def test_a_server_holds_the_store_s_vectors_and_its_neighbours(tmp_path: Path, server: str) -> None:
    root = tmp_path / "store"
    shards = open_view(root)
    put(shards, range(100))
    env = {"CHROMADB_URL": server, "FSQUEUE_STORE": str(root)}
    for words, added in (([root, server], 100), ([root], 0), ([server], 0)):
        done = fsqueue("embed", "export", *words, "--to", "chroma", "--json", env=env)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["added"] == added
    put(shards, range(100, 160))
    done = fsqueue("embed", "export", "--to", "chroma", env=env)
    assert "60 of 160 vectors added" in done.stdout, done.stderr

    found, store = of_chroma(server), Store(root)
    expected = store.get(list(found))
    got = np.stack([row.vector for row in found.values()])
    assert len(found) == 160
    np.testing.assert_allclose(got, expected, rtol=3e-7)
    queries = vectors_of(range(1000, 1020))
    ids, scores = store.search(queries, 5)
    answer = chroma_client(server).get_collection("default", embedding_function=None).query(
        query_embeddings=queries, n_results=5, include=["distances"]
    )  # fmt: skip
    assert answer["ids"] == ids.tolist()
    np.testing.assert_allclose(1 - np.array(answer["distances"]), scores, atol=1e-5)


def test_a_server_that_is_not_there_is_named_in_one_line(tmp_path: Path) -> None:
    put(open_view(tmp_path / "store"), range(3))
    done = fsqueue("embed", "export", tmp_path / "store", "http://127.0.0.1:9", "--to", "chroma")
    assert done.returncode == 1
    assert "http://127.0.0.1:9" in done.stderr and "Could not connect" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_store_may_stand_in_the_environment(tmp_path: Path) -> None:
    put(open_view(tmp_path / "store", width=8), range(3))
    np.save(tmp_path / "query.npy", vectors_of([2]))
    env = {"FSQUEUE_STORE": str(tmp_path / "store")}
    done = fsqueue("embed", "search", tmp_path / "query.npy", env=env)
    assert "record2" in done.stdout, done.stderr
    done = fsqueue("embed", "search", tmp_path / "query.npy")
    assert (done.returncode, done.stdout) == (2, "")
    assert "give STORE and QUERY" in done.stderr
