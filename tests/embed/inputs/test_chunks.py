"""Documents are planned as chunks, and a chunk's vector is that of its text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embed import Encoder
from embed.handlers.embed import Embed
from embed.models import families
from embed.outputs.claim_file import read
from embed.store import Store
from fsqueue import ClaimImpossible, UsageError
from tests.embed.conftest import Bench, fasta
from tests.support.generic_models import TEXTS, write_model
from tests.support.processes import fsqueue

MakeBench = Callable[..., Bench]
PROSE = "\n\n".join(f"{n}. " + " ".join(TEXTS) for n in range(12))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT that reads 64 tokens at once."""
    return write_model(tmp_path_factory.mktemp("models") / "bert", "bert")


@pytest.fixture
def texts(make_bench: MakeBench, bert: Path) -> Callable[..., Bench]:
    def make(**options: Any) -> Bench:
        return make_bench(**{"model": str(bert), "text": True, **options})

    return make


def rows_of(bench: Bench, *paths: str, cost_max: int = 10**9) -> dict[str, np.ndarray]:
    """Plan and run documents; return each chunk's row."""
    rows: dict[str, np.ndarray] = {}
    for item in bench.plan(*paths, cost_max=cost_max):
        work = bench.work(item)
        bench.handler.run(work)
        found = read(work.output)
        rows |= dict(zip(found.ids, found.rows, strict=True))
    return rows


def test_a_chunk_has_the_vector_of_its_text(texts: Callable[..., Bench], bert: Path) -> None:
    bench = texts()
    document = PROSE.replace("queue", "façade")
    found = bench.embed(bench.file(document, "guide.md"), bench.file("One more.", "b.txt"))
    count = len(found.ids) - 1
    assert found.ids == [*(f"guide.md#{n}" for n in range(1, count + 1)), "b.txt#1"]
    assert count > 10
    begins, lengths = (found.columns[name].tolist() for name in ("begins", "lengths"))
    chunks = [document[a : a + n] for a, n in zip(begins[:-1], lengths[:-1], strict=True)]
    assert chunks[0].startswith("0. The façade") and chunks[-1].endswith("ends at last.")
    expected = Encoder.load(str(bert)).encode([*chunks, "One more."])
    np.testing.assert_allclose(found.rows, expected, atol=2e-5)
    assert found.metadata["counts"]["truncated"] == 0


def test_how_a_document_is_divided_among_claims_does_not_change_its_vectors(
    texts: Callable[..., Bench],
) -> None:
    bench = texts()
    path = bench.file(PROSE, "guide.md")
    (whole,) = bench.plan(path)
    parts = bench.plan(path, cost_max=whole.cost // 5)
    assert len(parts) > 4 and max(part.cost for part in parts) <= whole.cost // 5
    assert sum(part.measures["sequences"] for part in parts) == whole.measures["sequences"]
    whole_rows, parts_rows = rows_of(bench, path), rows_of(bench, path, cost_max=whole.cost // 5)
    assert list(whole_rows) == list(parts_rows)
    for name, row in whole_rows.items():
        np.testing.assert_allclose(parts_rows[name], row, atol=2e-5)


def test_a_chunk_is_no_longer_than_the_model_takes(texts: Callable[..., Bench]) -> None:
    large, small = texts(chunk_size=512, chunk_overlap=1000), texts(chunk_size=62, chunk_overlap=31)
    assert large.options["chunk_size"] == 62 and large.options["chunk_overlap"] == 31
    deciding = [bench.handler.result_options(bench.options) for bench in (large, small)]
    assert deciding[0] == deciding[1]
    assert texts(max_residues=40).options["chunk_size"] == 38
    smaller = texts(chunk_size=20, chunk_overlap=4)
    path = large.file(PROSE)
    assert len(rows_of(smaller, path)) > len(rows_of(large, path)) > 20


def test_a_document_that_changed_is_refused(texts: Callable[..., Bench]) -> None:
    bench = texts()
    path = bench.file(PROSE)
    (item,) = bench.plan(path)
    Path(path).write_text(PROSE.replace("queue", "QUEUE"))
    with pytest.raises(ClaimImpossible, match="changed after it was planned"):
        bench.run(item)


def test_a_document_without_text_gives_an_empty_table(texts: Callable[..., Bench]) -> None:
    bench = texts()
    path = bench.file(" \n", "blank.txt")
    source = bench.handler.survey(path, bench.options)
    assert "contains no text" in source.notes[0]
    found = bench.embed(path)
    assert found.rows.shape == (0, 32) and len(found.columns["begins"]) == 0


def test_a_plan_of_sequences_has_no_options_of_texts(
    make_bench: MakeBench, texts: Callable[..., Bench]
) -> None:
    assert not {"text", "chunk_size", "chunk_overlap"} & make_bench().options.keys()
    assert texts().options["text"] is True


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"chunk_size": 10}, "at least 16 tokens"),
        ({"chunk_overlap": -1}, "must not be negative"),
        ({"max_residues": 12}, "at least 16 tokens"),
        ({"text": False, "chunk_size": 100}, "add --text"),
    ],
)
def test_impossible_chunk_options_are_refused(
    texts: Callable[..., Bench], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        texts(**options)


def test_a_model_that_reads_no_text_is_refused(make_bench: MakeBench, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="tiny_esm2 reads residues or bases"):
        make_bench(text=True)
    write_model(tmp_path / "protbert", "protbert")
    with pytest.raises(UsageError, match="protbert reads residues or bases"):
        make_bench(model=str(tmp_path / "protbert"), text=True)


# ---- with a store ----


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models that were loaded."""
    real, found = families.load, []

    def load(family: str, folder: str, dtype: str, device: Any, adapter: str) -> Any:
        found.append(folder)
        return real(family, folder, dtype, device, adapter)

    monkeypatch.setattr(families, "load", load)
    return found


def test_planning_loads_the_tokenizer_and_not_the_model(
    texts: Callable[..., Bench], loads: list[str]
) -> None:
    bench = texts()
    assert bench.plan(bench.file(PROSE)) and loads == []


def test_hits_lead_back_to_their_documents(texts: Callable[..., Bench], tmp_path: Path) -> None:
    bench = texts(store=str(tmp_path / "store"), collection="manuals")
    path = bench.file("\ufeff  " + PROSE, "guide.md")
    rows = rows_of(bench, path)
    store = Store(tmp_path / "store", "manuals")
    document = Path(path).read_text(encoding="utf-8")
    for name, row in rows.items():
        ids, scores = store.search(row, 1)
        (hit,) = store.records(ids[0].tolist())
        assert scores[0, 0] > 1 - 1e-5
        assert (hit.input, hit.record) == (path, name)
        assert document[hit.begin : hit.end] == hit.text != ""


def test_a_model_is_loaded_only_for_what_is_missing_in_the_store(
    texts: Callable[..., Bench], make_bench: MakeBench, tmp_path: Path, loads: list[str]
) -> None:
    benches = [texts, make_bench]
    for number, make in enumerate(benches):
        path, more = tmp_path / f"{number}.txt", tmp_path / f"{number}more.txt"
        path.write_text(PROSE if make is texts else fasta([("a", "MKVLAAGI"), ("b", "MKAY")]))
        more.write_text("A new sentence." if make is texts else fasta([("c", "GGGGAVL")]))
        first, again = (make(store=str(tmp_path / "store")) for _ in range(2))
        rows_of(first, str(path))
        assert len(loads) == 1
        assert list(rows_of(again, str(path))) and len(loads) == 1
        rows_of(again, str(more))
        assert len(loads) == 2
        loads.clear()


def test_warming_up_loads_the_model_even_with_a_store(
    texts: Callable[..., Bench], loads: list[str], tmp_path: Path
) -> None:
    bench = texts(store=str(tmp_path / "store"))
    bench.handler.warm(bench.options)
    assert len(loads) == 1 and bench.handler.loaded() == ["bert"]
    assert isinstance(bench.handler, Embed) and bench.handler.text_model() == str(
        bench.options["folder"]
    )


# ---- the commands ----


def done(*words: str | Path, status: int = 0) -> str:
    result = fsqueue(*words, deadline_s=120)
    assert result.returncode == status, result.stderr
    return result.stdout + result.stderr


@pytest.mark.slow
def test_documents_are_planned_embedded_merged_and_searched(bert: Path, tmp_path: Path) -> None:
    pool, store, folder = tmp_path / "pool", tmp_path / "store", tmp_path / "docs"
    folder.mkdir()
    (folder / "guide.md").write_text(PROSE)
    (folder / "note.txt").write_text("A worker takes a claim by renaming it.")
    (folder / "photo.jpg").write_bytes(b"\xff\xd8\xff\xe0\0\x10JFIF\0")
    how = ("--text", "--model", bert, "--store", store, "--collection", "manuals")
    planned = done("plan", "embed", pool, folder, *how, "--gpus", "cpux2", status=1)
    assert "photo.jpg: is binary" in planned and "CHARACTERS" in planned
    assert len(list((pool / "spools").glob("cpu*/*"))) > 8, "the guide is divided"
    done("work", pool)
    done("embed", "merge", pool, tmp_path / "all.safetensors")
    merged = read(tmp_path / "all.safetensors")
    assert merged.ids[0] == "guide.md#1" and merged.ids[-1] == "note.txt#1"
    assert [int(id.rpartition("#")[2]) for id in merged.ids[:-1]] == [*range(1, len(merged.ids))]
    assert len(merged.columns["begins"]) == len(merged.ids)
    assert "1 claim" not in done("plan", "embed", pool, folder / "guide.md", *how)

    search = ("embed", "search", store, "--collection", "manuals", "-k", "2")
    question = "A worker takes a claim by renaming it."
    (answer,) = json.loads(done(*search, question, "--json"))
    hit = answer["hits"][0]
    assert answer["query"] == question and answer["scores"][0] > 0.999
    assert (hit["document"], hit["chunk"], hit["begin"], hit["end"]) == ("note.txt", 1, 0, 38)
    assert hit["text"] == question and hit["input"] == str(folder / "note.txt")
    shown = done(*search, folder / "note.txt")
    assert "note.txt#1" in shown and f"{folder}/note.txt, characters 0-38" in shown
    assert f"    {question}\n" in shown
    assert "there is no such file" in done(*search, "nowhere.md", status=2)
    assert "the query is empty" in done(*search, " ", status=2)
