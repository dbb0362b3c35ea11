"""Format 2 shares vectors across length rules and copies of a model; format 1 stays in use."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embed import Encoder
from embed.query import search_store
from embed.store import spaces
from embed.store.store import Store
from fsqueue import UsageError
from tests.embed.conftest import Bench, fasta
from tests.support import generic_models
from tests.support.fake_embeddings import proteins

MakeBench = Callable[..., Bench]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def counted(bench: Bench, path: str) -> dict[str, int]:
    (item,) = bench.plan(path)
    work = bench.work(item)
    bench.handler.run(work)
    return {name: n for name, n in work.counted.items() if n}


def spaces_of(root: Path) -> list[str]:
    return sorted(path.parent.name for path in root.glob("default/*/space.json"))


# ---- length rules ----


def test_sequences_that_a_length_rule_does_not_touch_are_shared(
    make_bench: MakeBench, tmp_path: Path
) -> None:
    store = str(tmp_path / "store")
    everything = [*proteins(10, length=20).items(), ("long", "MKVLAWGTSDEFRH" * 5)]
    first = make_bench(store=store)
    path = first.file(fasta(everything))
    assert counted(first, path) == {"computed": 11}
    for options in (
        {"max_residues": 40},
        {"max_residues": 40, "long": "window"},
        {"max_residues": 40, "long": "window", "overlap": 10},
    ):
        assert counted(make_bench(store=store, **options), path) == {
            "store_hits": 10, "computed": 1,
        }  # fmt: skip
    assert counted(make_bench(store=store, max_residues=200), path) == {"store_hits": 11}
    assert len(spaces_of(tmp_path / "store")) == 1


def test_what_a_rule_makes_of_a_sequence_is_what_is_found_again(
    make_bench: MakeBench, tmp_path: Path, tiny_model: Path
) -> None:
    """A truncated sequence has the vector of what is left of it; one in windows has its own."""
    store, text = str(tmp_path / "store"), "MKVLAWGTSDEFRH" * 2
    rules: list[dict[str, Any]] = [
        {},
        {"max_residues": 11},
        {"max_residues": 11, "long": "window"},
        {"max_residues": 11, "long": "window", "overlap": 3},
    ]
    for options in (*rules, *rules):
        bench = make_bench(store=store, **options)
        found = bench.embed(bench.file(fasta([("a", text)]))).rows[0]
        with pytest.warns(UserWarning) if options else _nothing():
            expected = Encoder.load(str(tiny_model), **options).encode([text])[0]
        np.testing.assert_allclose(found, expected, atol=1e-5)
    cut = make_bench(store=store)
    assert counted(cut, cut.file(fasta([("b", text[:11])]))) == {"store_hits": 1}


class _nothing:
    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


# ---- copies of a model ----


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Path]:
    """Put a model into the hub's cache, as its client does: links to files called by their hash."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def put(folder: Path) -> Path:
        repository = tmp_path / "hub" / "models--org--tiny"
        snapshot = repository / "snapshots" / COMMIT
        snapshot.mkdir(parents=True)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(COMMIT)
        (repository / "blobs").mkdir()
        for path in folder.iterdir():
            data = path.read_bytes()
            kind = hashlib.sha256 if path.suffix == ".safetensors" else hashlib.sha1
            blob = repository / "blobs" / kind(data).hexdigest()
            blob.write_bytes(data)
            os.symlink(blob, snapshot / path.name)
        return snapshot

    return put


@pytest.mark.parametrize("name", ["esm2", "bert"])
def test_a_hub_id_and_a_local_copy_share_vectors(
    make_bench: MakeBench,
    tmp_path: Path,
    tiny_model: Path,
    name: str,
    cached: Callable[[Path], Path],
) -> None:
    source = tiny_model if name == "esm2" else generic_models.write_model(tmp_path / "b", "bert")
    cached(source)
    shutil.copytree(source, tmp_path / "my_copy")
    store = str(tmp_path / "store")
    options: dict[str, Any] = {"store": store, "pooling": "mean"}
    hub, local = (
        make_bench(model=model, **options) for model in ("org/tiny", str(tmp_path / "my_copy"))
    )
    assert hub.options["weights"] == f"commit:{COMMIT}" != local.options["weights"]
    assert hub.options["content"] == local.options["content"] == local.options["weights"]
    texts = [(str(n), "a," * n) for n in range(1, 6)]
    path = hub.file(fasta(proteins(5, length=20).items() if name == "esm2" else texts))
    assert counted(hub, path) == {"computed": 5}
    assert counted(local, path) == {"store_hits": 5}
    (directory,) = spaces_of(tmp_path / "store")
    assert directory.startswith("esm2_32-" if name == "esm2" else "encoder_32-")
    for weights in (None, str(tmp_path / "my_copy")):
        query = path if name == "esm2" else "A text"
        (answer, *_) = search_store(
            store, query, 1, collection="default", model=None, weights=weights
        )
        assert len(answer.hits) == 1


# ---- format 1 ----


def as_format_1(bench: Bench) -> None:
    """Let a plan be one that an earlier fsqueue made, and its store one that it created."""
    bench.options.pop("content")
    root = Path(bench.options["store"])
    root.mkdir()
    (root / "store.json").write_text('{"fsqueue store": 1}\n')


def test_a_space_of_format_1_stays_in_use_for_plans_like_those_that_filled_it(
    make_bench: MakeBench, tmp_path: Path
) -> None:
    old = make_bench(store=str(tmp_path / "store"))
    as_format_1(old)
    path = old.file(fasta(proteins(5, length=20).items()))
    assert counted(old, path) == {"computed": 5}
    facts = json.loads(next((tmp_path / "store").glob("default/*/space.json")).read_text())
    assert "content" not in facts and facts["max_residues"] == 1022
    same = make_bench(store=str(tmp_path / "store"))
    assert counted(same, path) == {"store_hits": 5}
    assert json.loads((tmp_path / "store/store.json").read_text()) == {"fsqueue store": 1}
    hits = Store(tmp_path / "store").search(np.ones((1, 32)), 9)[0]
    assert hits.shape == (1, 5)


def test_another_plan_adds_a_space_of_format_2_and_marks_the_store(
    make_bench: MakeBench, tmp_path: Path
) -> None:
    old = make_bench(store=str(tmp_path / "store"))
    as_format_1(old)
    path = old.file(fasta(proteins(5, length=20).items()))
    counted(old, path)
    (first,) = spaces_of(tmp_path / "store")
    assert counted(make_bench(store=str(tmp_path / "store"), max_residues=99), path)
    assert json.loads((tmp_path / "store/store.json").read_text()) == {"fsqueue store": 2}
    assert len(spaces_of(tmp_path / "store")) == 2
    for directory in spaces_of(tmp_path / "store"):
        assert Store(tmp_path / "store", model=directory).search(np.ones((1, 32)), 9)[0].size == 5
    assert counted(make_bench(store=str(tmp_path / "store")), path) == {"store_hits": 5}
    assert Store(tmp_path / "store", model=first).space.content == ""


def test_a_store_of_a_later_format_is_refused(make_bench: MakeBench, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store/store.json").write_text('{"fsqueue store": 3}\n')
    with pytest.raises(UsageError, match="of format 3, and this fsqueue reads up to 2"):
        make_bench(store=str(tmp_path / "store"))
    assert spaces.FORMAT == 2
