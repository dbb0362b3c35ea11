"""Both families through the handler: what is truncated, windowed, pooled and refused."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embed.models.dnabert import network as dnabert
from embed.models.dnabert.tokenizer import DnaTokenizer
from embed.models.esm2 import network as esm2
from embed.models.esm2.tokenizer import token_ids
from embed.outputs.claim_file import FLAGS, Embeddings
from fsqueue import BadInput, UsageError
from tests.embed.conftest import Bench, fasta
from tests.support.dnabert import write_model

MakeBench = Callable[..., Bench]
CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def tiny_dnabert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-dnabert"
    write_model(folder)
    return folder


@pytest.fixture
def dna_bench(make_bench: MakeBench, tiny_dnabert: Path) -> MakeBench:
    return lambda **options: make_bench(**{"model": str(tiny_dnabert), **options})


def dna(bases: int, seed: int = 1) -> str:
    return "".join(random.Random(seed).choices("ACGT", k=bases))


def states(folder: Path, bases: str) -> np.ndarray:
    ids = DnaTokenizer(str(folder)).ids(bases.encode())
    return dnabert.load(str(folder), "float32", CPU).hidden([ids]).split()[0].numpy()


def esm_states(bench: Bench, residues: str) -> np.ndarray:
    encoder = esm2.load(bench.options["folder"], "float32", CPU)
    return encoder.hidden([token_ids(residues.encode())]).split()[0].numpy()


def near(one: np.ndarray, two: np.ndarray) -> bool:
    return one.shape == two.shape and float(np.abs(one - two).max(initial=0)) < 1e-5


def sequences(found: Embeddings) -> list[np.ndarray]:
    """Cut a ragged matrix."""
    return np.split(found.rows, found.columns["offsets"][1:-1])


@pytest.mark.parametrize("family", ["esm2", "dnabert"])
def test_a_plan_of_tf32_gives_the_vectors_of_float32_where_there_is_none(
    make_bench: MakeBench, dna_bench: MakeBench, family: str
) -> None:
    make, text = (dna_bench, dna(90)) if family == "dnabert" else (make_bench, "MKVLAAGIVG")
    exact = make()
    path = exact.file(fasta([("one", text)]), "one.fa")
    found = make(dtype="tf32").embed(path).rows
    assert found.tobytes() == exact.embed(path).rows.tobytes()


# ---- DNABERT ----


def test_dna_is_embedded_as_its_authors_do_cls_and_sep_in_the_mean(
    dna_bench: MakeBench, tiny_dnabert: Path
) -> None:
    bench = dna_bench()
    chunks = [(f"c{n}", dna(200 + 7 * n, n)) for n in range(20)]
    found = bench.embed(bench.file(fasta(chunks), "x.fa"))
    assert found.ids == [name for name, _ in chunks]
    for row, (_, bases) in zip(found.rows[::5], chunks[::5], strict=True):
        whole = states(tiny_dnabert, bases)
        assert near(row, whole.mean(0))
        assert not near(row, whole[1:-1].mean(0))
    assert found.metadata["versions"].keys() == {"fsqueue", "torch", "tokenizers"}
    assert (found.metadata["pooling"], found.metadata["long"]) == ("mean", "window")


def test_soft_masked_dna_gives_the_same_vectors_and_n_is_counted(dna_bench: MakeBench) -> None:
    bench = dna_bench()
    text = fasta([("a", dna(90)), ("b", dna(90).lower()), ("c", dna(80) + "NNNRY")])
    found = bench.embed(bench.file(text, "x.fa"))
    assert near(found.rows[0], found.rows[1])
    assert found.metadata["counts"]["unknown_residues"] == 5
    assert found.columns["flags"].tolist() == [0, 0, FLAGS["unknown_residues"]]
    assert any("5 letters are outside the model's vocabulary" in line for line in bench.warnings)


def test_a_contig_of_more_than_ten_thousand_bases_is_read_in_windows(
    dna_bench: MakeBench, tiny_dnabert: Path
) -> None:
    bench = dna_bench(max_residues=300)
    assert dna_bench().options["max_residues"] == 10_000
    contig = dna(700)
    found = bench.embed(bench.file(fasta([("long", contig), ("fits", contig[:300])]), "x.fa"))
    edges = [(0, 233), (233, 466), (466, 700)]
    parts = [states(tiny_dnabert, contig[begin:end]).mean(0) for begin, end in edges]
    expected = (233 * parts[0] + 233 * parts[1] + 234 * parts[2]) / 700
    assert near(found.rows[0], expected.astype(np.float32))
    assert near(found.rows[1], states(tiny_dnabert, contig[:300]).mean(0))
    assert found.columns["lengths"].tolist() == [700, 300]
    assert found.columns["flags"].tolist() == [FLAGS["windowed"], 0]
    assert found.metadata["counts"]["windowed"] == 1
    assert bench.warnings == ["1 sequence was longer than --max-residues and read in windows"]


def test_windows_in_different_batches_are_joined_to_the_same_vector(dna_bench: MakeBench) -> None:
    one, other = dna_bench(max_residues=100), dna_bench(max_residues=100, tokens_per_batch=40)
    path = one.file(fasta([(f"c{n}", dna(90 * n, n)) for n in range(1, 9)]), "x.fa")
    assert near(one.embed(path).rows, other.embed(path).rows)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dna_in_half_precision_is_near(dna_bench: MakeBench, dtype: str) -> None:
    bench = dna_bench()
    path = bench.file(fasta([(f"c{n}", dna(300, n)) for n in range(5)]), "x.fa")
    full, half = bench.embed(path).rows, dna_bench(dtype=dtype).embed(path).rows
    cosine = (half * full).sum(1) / np.linalg.norm(half, axis=1) / np.linalg.norm(full, axis=1)
    assert cosine.min() > 0.999


def test_the_model_is_known_by_its_config_and_pinned_with_its_vocabulary(
    dna_bench: MakeBench, tiny_dnabert: Path, tmp_path: Path
) -> None:
    import shutil

    options = dna_bench().options
    assert (options["family"], options["width"]) == ("dnabert", 48)
    copied = tmp_path / "copied"
    shutil.copytree(tiny_dnabert, copied)
    tokenizer = copied / "tokenizer.json"
    tokenizer.write_text(json.dumps(json.loads(tokenizer.read_text())))
    assert dna_bench(model=str(copied)).options["weights"] != options["weights"]
    tokenizer.unlink()
    with pytest.raises(UsageError, match=r"tokenizer\.json: is missing"):
        dna_bench(model=str(copied))
    shutil.copy(tiny_dnabert / "tokenizer.json", tokenizer)
    data = (copied / "pytorch_model.bin").read_bytes()
    (copied / "pytorch_model.bin").write_bytes(data[: len(data) // 2])
    with pytest.raises(UsageError, match="truncated"):
        dna_bench(model=str(copied))


# ---- long proteins ----


def test_a_long_protein_in_windows_is_the_mean_over_all_its_residues(
    make_bench: MakeBench,
) -> None:
    bench = make_bench(max_residues=50, long="window")
    residues = "MKVLAAGIVGLCAKAY" * 8  # 128: windows of 42, 43 and 43
    found = bench.embed(bench.file(fasta([("a", residues)])))
    edges = [(0, 42), (42, 85), (85, 128)]
    parts = [esm_states(bench, residues[begin:end])[1:-1] for begin, end in edges]
    assert near(found.rows[0], np.concatenate(parts).mean(0))
    assert found.metadata["windows"] == "equal"


def test_a_plan_from_before_there_were_equal_windows_has_full_ones_and_a_rest(
    make_bench: MakeBench,
) -> None:
    bench = make_bench(max_residues=50, long="window")
    del bench.options["windows"]
    residues = "MKVLAAGIVGLCAKAY" * 8
    found = bench.embed(bench.file(fasta([("a", residues)])))
    parts = [esm_states(bench, residues[at : at + 50])[1:-1] for at in (0, 50, 100)]
    assert near(found.rows[0], np.concatenate(parts).mean(0))


def test_of_windows_that_overlap_each_residue_has_one_row(make_bench: MakeBench) -> None:
    bench = make_bench(max_residues=20, long="window", overlap=8, pooling="per-token")
    residues = "MKVLAAGIVGLCAKAY" * 3  # 48: windows at 0, 9, 18 and 28
    found = bench.embed(bench.file(fasta([("a", residues)])))
    states = {at: esm_states(bench, residues[at : at + 20])[1:-1] for at in (0, 9, 18, 28)}
    rows = [states[0][:15], states[9][6:15], states[18][6:15], states[28][5:]]
    assert found.columns["offsets"].tolist() == [0, 48]
    assert near(found.rows, np.concatenate(rows))
    assert found.metadata["overlap"] == "8"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overlap": 8}, "add --long window"),
        ({"overlap": 11, "long": "window", "max_residues": 20}, "at most half a window, 10 of"),
        ({"overlap": -1, "long": "window"}, "--overlap -1"),
    ],
)
def test_an_overlap_that_cannot_be_is_refused(
    make_bench: MakeBench, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        make_bench(**options)


def test_long_fail_refuses_the_file_when_it_is_planned(make_bench: MakeBench) -> None:
    bench = make_bench(max_residues=50, long="fail")
    bench.plan(bench.file(fasta([("a", "M" * 50)])))
    with pytest.raises(BadInput, match=r"sequence of 51 residues.*--long truncate or window"):
        bench.plan(bench.file(fasta([("a", "M" * 50), ("b", "M" * 51)]), "y.faa"))


def test_the_handling_of_long_sequences_decides_the_claim_s_id(
    make_bench: MakeBench,
) -> None:
    chosen = [make_bench(), make_bench(long="window"), make_bench(max_residues=9)]
    chosen.append(make_bench(pooling="max"))
    decisive = {json.dumps(dict(bench.handler.result_options(bench.options))) for bench in chosen}
    assert len(decisive) == 4
    assert make_bench(long="truncate", max_residues=1022).options == make_bench().options
    merged_later = make_bench(format="h5")
    assert merged_later.handler.result_options(merged_later.options) == chosen[
        0
    ].handler.result_options(chosen[0].options)


# ---- pooling ----


@pytest.mark.parametrize(
    ("pooling", "rule"),
    [
        ("mean", lambda h: h[1:-1].mean(0)),
        ("cls", lambda h: h[0]),
        ("max", lambda h: h[1:-1].max(0)),
    ],
)
def test_pooling_of_proteins(
    make_bench: MakeBench, pooling: str, rule: Callable[[np.ndarray], np.ndarray]
) -> None:
    bench = make_bench(pooling=pooling)
    residues = ["MKV", "MKVLAAGIVGLC" * 3, "W"]
    found = bench.embed(bench.file(fasta([(r[:3], r) for r in residues])))
    for row, each in zip(found.rows, residues, strict=True):
        assert near(row, rule(esm_states(bench, each)))
    assert found.metadata["pooling"] == pooling


def test_the_maximum_of_windows_is_the_maximum_over_all(make_bench: MakeBench) -> None:
    bench = make_bench(pooling="max", max_residues=20, long="window")
    residues = "MKVLAAGIVGLCAKAY" * 3
    found = bench.embed(bench.file(fasta([("a", residues)])))
    parts = [esm_states(bench, residues[at : at + 16])[1:-1] for at in (0, 16, 32)]
    assert near(found.rows[0], np.concatenate(parts).max(0))


def test_per_token_rows_are_one_ragged_matrix_in_input_order(make_bench: MakeBench) -> None:
    bench = make_bench(pooling="per-token", max_residues=20, long="window", tokens_per_batch=60)
    residues = ["MKV", "", "MKVLAAGIVGLCAKAY" * 3, "W", "MM"]
    found = bench.embed(bench.file(fasta([(f"s{n}", r) for n, r in enumerate(residues)])))
    assert found.columns["offsets"].tolist() == [0, 3, 3, 51, 52, 54]
    assert found.columns["lengths"].tolist() == [3, 0, 48, 1, 2]
    for rows, each in zip(sequences(found), residues, strict=True):
        parts = [esm_states(bench, each[at : at + 16])[1:-1] for at in range(0, len(each), 16)]
        assert near(rows, np.concatenate(parts) if parts else np.empty((0, 32), np.float32))
    assert found.columns["flags"].tolist() == [0, FLAGS["empty"], FLAGS["windowed"], 0, 0]


def test_per_token_rows_survive_an_interruption(make_bench: MakeBench) -> None:
    from fsqueue import Interrupted

    options = {"pooling": "per-token", "tokens_per_batch": 60, "checkpoint_seconds": 1}
    bench = make_bench(**options)
    (item,) = bench.plan(bench.file(fasta([(f"s{n}", "MKVLA" * n) for n in range(1, 12)])))
    undisturbed = bench.run(item)
    stopping = iter([False, False, True])
    with pytest.raises(Interrupted):
        bench.handler.run(bench.work(item, stop=lambda: next(stopping)))
    assert make_bench(**options).run(item) == undisturbed


def test_claims_with_a_row_for_each_token_are_kept_small(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    from embed.handlers import embed

    monkeypatch.setattr(embed, "RAGGED_BYTES", 4 * 32 * 5000)
    proteins = fasta([(f"s{n}", "MKVLA" * 60) for n in range(100)])
    assert len(make_bench().plan(make_bench().file(proteins))) == 1
    bench = make_bench(pooling="per-token")
    items = bench.plan(bench.file(proteins))
    assert len(items) >= 6
    assert max(item.measures["residues"] for item in items) <= 5000 + 4096


def test_dna_per_token_leaves_special_tokens_out(dna_bench: MakeBench, tiny_dnabert: Path) -> None:
    bench = dna_bench(pooling="per-token")
    found = bench.embed(bench.file(fasta([("a", dna(100)), ("b", dna(60, 2))]), "x.fa"))
    for rows, bases in zip(sequences(found), (dna(100), dna(60, 2)), strict=True):
        assert near(rows, states(tiny_dnabert, bases)[1:-1])
