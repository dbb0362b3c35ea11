"""The store by its commands, as a user has it: real pools, a real model, two runs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from tests.embed.conftest import fasta
from tests.support.fake_embeddings import proteins
from tests.support.processes import fsqueue

pytestmark = pytest.mark.slow


def done(*words: str | Path, status: int = 0) -> str:
    """Run a command, and return what it printed."""
    result = fsqueue(*words, deadline_s=120)
    assert result.returncode == status, result.stderr
    return result.stdout


def digests(pool: Path) -> dict[str, str]:
    files = sorted((pool / "outputs").glob("*.safetensors"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def finished(pool: Path) -> list[dict[str, int]]:
    """Return the journals' `finished` events."""
    lines = [line for path in (pool / "events").iterdir() for line in path.read_text().splitlines()]
    events = [json.loads(line) for line in lines]
    return [event for event in events if event["event"] == "finished"]


def test_two_pools_share_a_store_and_it_can_be_searched(tmp_path: Path, tiny_model: Path) -> None:
    store, query = tmp_path / "store", tmp_path / "query.faa"
    everything = list(proteins(40, length=60).items())
    (tmp_path / "a.faa").write_text(fasta(everything))
    query.write_text(fasta([("what", everything[7][1])]))
    for name in ("first", "second"):
        done("plan", "embed", tmp_path / name, tmp_path / "a.faa", "--model", tiny_model,
             "--store", store, "--gpus", "cpu")  # fmt: skip
        done("work", tmp_path / name)
        if name == "first":
            query_answers(store, query)
    first, second = finished(tmp_path / "first"), finished(tmp_path / "second")
    assert [sum(e["computed"] for e in events) for events in (first, second)] == [40, 0]
    assert [sum(e["store_hits"] for e in events) for events in (first, second)] == [0, 40]
    assert digests(tmp_path / "first") == digests(tmp_path / "second") != {}
    status = json.loads(done("status", tmp_path / "second", "--json"))
    assert status["counters"]["store_hits"] == 40
    assert "40 store hits" in done("status", tmp_path / "second")

    (info,) = json.loads(done("embed", "store", "info", store, "--json"))
    assert (info["vectors"], info["duplicates"], info["model"]) == (40, 0, "tiny_esm2")
    assert "1 space, all intact" in done("embed", "store", "verify", store)


def query_answers(store: Path, query: Path) -> None:
    (answer,) = json.loads(done("embed", "search", store, query, "-k", "3", "--json"))
    hit = answer["hits"][0]
    assert (answer["query"], hit["record"], hit["length"]) == ("what", "p0_7", 60)
    assert hit["input"].endswith("a.faa")
    assert answer["scores"][0] == pytest.approx(1.0, abs=1e-5)
    assert len(answer["hits"]) == 3
    assert "p0_7" in done("embed", "search", store, query)
    vectors = query.with_suffix(".npy")
    np.save(vectors, np.ones((2, 32), np.float32))
    assert len(json.loads(done("embed", "search", store, vectors, "--json"))) == 2


def test_a_storage_worker_compacts_a_store_and_other_workers_do_not(
    tmp_path: Path, tiny_model: Path
) -> None:
    store, pool = tmp_path / "store", tmp_path / "pool"
    for number in range(3):
        path = tmp_path / f"{number}.faa"
        path.write_text(fasta(proteins(5, seed=number, length=30).items()))
        done("embed", "file", path, "--model", tiny_model, "--store", store)
    done("plan", "compact", pool, store, "--grace", "0", "--gpus", "cpu")
    assert [path.name.count("--t3") for path in (pool / "spools" / "cpu0").iterdir()] == [1]
    done("work", pool, "--role", "storage")
    (output,) = (pool / "outputs").iterdir()
    assert json.loads(output.read_text())["merged"] == 3
    (info,) = json.loads(done("embed", "store", "info", store, "--json"))
    assert (info["shards"], info["vectors"], info["superseded"]) == (1, 15, 0)
    again = done("plan", "compact", pool, store, "--grace", "0")
    assert "1 claim planned" in again  # the store is another one now
    done("work", pool, "--role", "storage")
    assert "planned before" in done("plan", "compact", pool, store, "--grace", "0")


def test_errors_are_reported_in_one_line(tmp_path: Path, tiny_model: Path) -> None:
    store, path = tmp_path / "store", tmp_path / "a.faa"
    path.write_text(fasta(proteins(5, length=30).items()))
    done("embed", "file", path, "--model", tiny_model, "--store", store)
    shard = next(store.rglob("0*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-200] ^= 1
    shard.write_bytes(data)
    result = fsqueue("embed", "store", "verify", store)
    assert result.returncode == 1
    assert "00000001.safetensors: is damaged" in result.stderr
    for words in (
        ["store", "info", tmp_path],
        ["search", tmp_path, path],
        ["store", "compact", path],
    ):
        result = fsqueue("embed", *words)
        assert result.returncode == 2, words
        assert "is not a store" in result.stderr
        assert "Traceback" not in result.stderr
