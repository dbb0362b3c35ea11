"""Claims take stored vectors, compute the rest once, and give the same bytes again."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embed.engine.engine import Engine
from embed.outputs.claim_file import read
from embed.store import spaces
from fsqueue import Interrupted, UsageError
from tests.embed.conftest import Bench, fasta
from tests.support.fake_embeddings import proteins

MakeBench = Callable[..., Bench]


def run(bench: Bench, path: str) -> tuple[bytes, dict[str, int]]:
    """Run a file as one claim; return the output's bytes and what was counted."""
    (item,) = bench.plan(path)
    work = bench.work(item)
    bench.handler.run(work)
    return work.output.read_bytes(), work.counted


def test_a_second_run_computes_nothing_and_gives_the_same_bytes(
    make_bench: MakeBench, tmp_path: Path, computed: list[int]
) -> None:
    options = {"store": str(tmp_path / "store"), "tokens_per_batch": 300}
    first, second = make_bench(**options), make_bench(**options)
    path = first.file(fasta(proteins(30, length=40).items()))
    fresh, counted = run(first, path)
    assert counted == {"store_hits": 0, "store_repeats": 0, "computed": 30}
    assert sum(computed) == 30
    computed.clear()
    again, counted = run(second, path)
    assert computed == []
    assert counted == {"store_hits": 30, "store_repeats": 0, "computed": 0}
    assert again == fresh


def test_a_run_that_shares_sixty_percent_computes_forty(
    make_bench: MakeBench, tmp_path: Path, computed: list[int]
) -> None:
    bench = make_bench(store=str(tmp_path / "store"))
    everything = list(proteins(80, length=30).items())
    run(bench, bench.file(fasta(everything[:50]), "old.faa"))
    computed.clear()
    _, counted = run(bench, bench.file(fasta(everything[20:70]), "new.faa"))
    assert sum(computed) == 20
    assert counted == {"store_hits": 30, "store_repeats": 0, "computed": 20}


def test_equal_sequences_of_a_claim_are_computed_once(
    make_bench: MakeBench, tmp_path: Path, computed: list[int]
) -> None:
    bench = make_bench(store=str(tmp_path / "store"))
    path = bench.file(">a\nMKVL\n>b\nMKAY\n>c\nmkvl*\n>d\nMKVL\n>e\n\n")
    (item,) = bench.plan(path)
    work = bench.work(item)
    bench.handler.run(work)
    assert sum(computed) == 2
    assert work.counted == {"store_hits": 0, "store_repeats": 2, "computed": 2}
    rows = read(work.output).rows
    assert rows[0].tobytes() == rows[2].tobytes() == rows[3].tobytes() != rows[1].tobytes()
    assert not rows[4].any()


def test_the_vectors_are_those_of_a_run_without_a_store(
    make_bench: MakeBench, tmp_path: Path
) -> None:
    plain, stored = make_bench(), make_bench(store=str(tmp_path / "store"))
    path = plain.file(fasta(proteins(12, length=50).items()))
    expected = plain.embed(path)
    found = stored.embed(path)
    np.testing.assert_array_equal(found.rows, expected.rows)
    assert found.ids == expected.ids
    assert {k: v for k, v in found.metadata.items() if k != "store"} == expected.metadata


def test_long_sequences_are_stored_whole_when_they_are_read_in_windows(
    make_bench: MakeBench, tmp_path: Path, computed: list[int]
) -> None:
    options = {"long": "window", "max_residues": 20}
    plain = make_bench(**options)
    path = plain.file(fasta(proteins(6, length=50).items()))
    expected = plain.embed(path).rows
    for _ in range(2):
        bench = make_bench(store=str(tmp_path / "store"), **options)
        assert bench.embed(path).rows.tobytes() == expected.tobytes()
    assert sum(computed) == 2 * 6 * 3


def test_half_precision_rounds_fresh_and_reused_vectors_alike(
    make_bench: MakeBench, tmp_path: Path
) -> None:
    bench = make_bench(store=str(tmp_path / "store"), store_dtype="float16")
    path = bench.file(fasta(proteins(5, length=50).items()))
    fresh, _ = run(bench, path)
    assert run(bench, path)[0] == fresh
    rows = read(bench.work(bench.plan(path)[0]).output).rows
    assert rows.dtype == np.float32
    assert (rows == rows.astype(np.float16)).all()


def test_an_interrupted_claim_stores_what_it_computed(
    make_bench: MakeBench, tmp_path: Path, computed: list[int]
) -> None:
    bench = make_bench(store=str(tmp_path / "store"), tokens_per_batch=100)
    path = bench.file(fasta(proteins(20, length=45).items()))
    (item,) = bench.plan(path)
    calls = count()
    with pytest.raises(Interrupted):
        bench.handler.run(bench.work(item, stop=lambda: next(calls) == 3))
    assert sum(computed) == 6
    _, counted = run(bench, path)
    assert counted == {"store_hits": 6, "store_repeats": 0, "computed": 14}
    assert sum(computed) == 20


def test_a_long_claim_stores_vectors_between_checkpoints(
    make_bench: MakeBench, tmp_path: Path
) -> None:
    options = {"tokens_per_batch": 100, "checkpoint_seconds": 1}
    bench = make_bench(store=str(tmp_path / "store"), **options)
    bench.options["checkpoint_seconds"] = 0
    path = bench.file(fasta(proteins(10, length=45).items()))
    fresh, _ = run(bench, path)
    ((_, view),) = spaces.list_spaces(str(tmp_path / "store"))
    view.refresh()
    assert [shard.count for shard in view.shards] == [2] * 5
    assert run(bench, path)[0] == fresh


def test_a_vector_that_another_worker_stored_first_is_used(
    make_bench: MakeBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both computed it; the output has the stored vector, not the one of this worker."""
    options = {"store": str(tmp_path / "store")}
    slow, fast = make_bench(**options), make_bench(**options)
    path = slow.file(fasta(proteins(4, length=45).items()))
    real = Engine.run
    outputs = []

    def overtaken(self: Engine, batches: Any, warn: Any) -> Any:
        monkeypatch.setattr(Engine, "run", real)
        outputs.append(run(fast, path)[0])
        for batch, rows in real(self, batches, warn):
            yield batch, rows + np.float32(1e-3)

    monkeypatch.setattr(Engine, "run", overtaken)
    assert run(slow, path)[0] == outputs[0]


def test_a_store_is_not_decisive_but_its_precision_is(
    make_bench: MakeBench, tmp_path: Path
) -> None:
    plain, stored = make_bench(), make_bench(store=str(tmp_path / "store"), collection="x")
    rounded = make_bench(store=str(tmp_path / "store"), store_dtype="float16")
    decisive = [bench.handler.result_options(bench.options) for bench in (plain, stored, rounded)]
    assert decisive[0] == decisive[1] != decisive[2]


def test_the_store_may_come_from_the_environment(
    make_bench: MakeBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FSQUEUE_STORE", str(tmp_path / "store"))
    assert make_bench().options["store"] == str(tmp_path / "store")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"store": "store", "pooling": "per-token"}, "per-token gives a row"),
        ({"store": "store", "collection": "a/b"}, "use letters"),
        ({"store": "store", "collection": ".."}, "use letters"),
        ({"store": "full"}, "not a store"),
        ({"store": "nowhere/store"}, "parent directory"),
        ({"store_dtype": "float16"}, "add --store"),
    ],
)
def test_invalid_options_are_refused_when_planning(
    make_bench: MakeBench, tmp_path: Path, options: dict[str, str], words: str
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    if "store" in options:
        options = {**options, "store": os.path.join(tmp_path, options["store"])}
    with pytest.raises(UsageError, match=words):
        make_bench(**options)


def test_planning_makes_no_store(make_bench: MakeBench, tmp_path: Path) -> None:
    make_bench(store=str(tmp_path / "store"))
    assert not (tmp_path / "store").exists()
