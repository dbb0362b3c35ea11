"""Scores are pseudo-log-likelihoods: those of an independent rendering, one input at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow.parquet
import pytest
import torch
import transformers as hf
from click.testing import CliRunner

from embed.cli import embed as command
from embed.models.scores import masked_lm
from embed.outputs.claim_file import read
from fsqueue import UsageError
from tests.embed.conftest import SHAPE, Bench, fasta
from tests.support import dnabert, generic_models
from tests.support import published_models as published

pytestmark = pytest.mark.usefixtures("one_thread")

MakeBench = Callable[..., Bench]
PROTEINS = ["MKTAYIAKQRQISFVKSHFSRQ", "MAGW", "GSHMLEDPVW"]


@pytest.fixture(scope="module")
def esm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny ESM-2 with its head."""
    folder = tmp_path_factory.mktemp("esm2")
    published.save(hf.EsmForMaskedLM(hf.EsmConfig(**SHAPE)), folder)
    return folder


def logs(model: Any, ids: list[int]) -> torch.Tensor:
    """The logarithm of every token's probability at every place of one input, in float64."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)))
    return torch.log_softmax(logits.logits[0].double(), -1)


def pseudo_log_likelihood(model: Any, ids: list[int], own: range, mask: int | None) -> float:
    total = 0.0
    whole = logs(model, ids)
    for place in own:
        seen = whole if mask is None else logs(model, [*ids[:place], mask, *ids[place + 1 :]])
        total += float(seen[place, ids[place]])
    return total


def rendering(folder: Path, inputs: list[list[int]], mask: int | None) -> list[float]:
    """`inputs` have a token before and one after."""
    model = hf.AutoModelForMaskedLM.from_pretrained(folder, attn_implementation="eager").eval()
    return [pseudo_log_likelihood(model, ids, range(1, len(ids) - 1), mask) for ids in inputs]


def esm_ids(text: str) -> list[int]:
    vocabulary = published.ESM_VOCABULARY.split()
    return [0, *(vocabulary.index(letter) for letter in text), 2]


@pytest.mark.parametrize("tokens_per_batch", [4096, 24])
@pytest.mark.parametrize(("scores", "mask"), [("one-pass", None), ("masked", 32)])
def test_esm2_s_scores_are_those_of_transformers(
    esm2: Path, make_bench: MakeBench, scores: str, mask: int | None, tokens_per_batch: int
) -> None:
    bench = make_bench(model=str(esm2), scores=scores, tokens_per_batch=tokens_per_batch)
    path = bench.file(fasta([(str(n), text) for n, text in enumerate([*PROTEINS, ""])]))
    found = bench.embed(path)
    expected = rendering(esm2, [esm_ids(text) for text in PROTEINS], mask)
    np.testing.assert_allclose(found.columns["score"], [*expected, 0.0], rtol=1e-4)
    assert found.columns["score"].dtype == np.float32
    assert found.metadata["scores"] == scores
    plain = make_bench(model=str(esm2))
    np.testing.assert_allclose(found.rows, plain.embed(path).rows, atol=1e-5)


@pytest.mark.parametrize(("scores", "mask"), [("one-pass", None), ("masked", 4)])
@pytest.mark.parametrize("name", ["bert", "protbert"])
def test_bert_s_scores_are_those_of_transformers(
    make_bench: MakeBench, tmp_path: Path, name: str, scores: str, mask: int | None
) -> None:
    folder = generic_models.write_model(tmp_path / name, name)
    bench = make_bench(model=str(folder), scores=scores, layers="1")
    texts = ["aworker,aclaim,afile", "short", "thequeueisadirectory,anda"]
    texts = PROTEINS if name == "protbert" else texts
    found = bench.embed(bench.file(fasta([(str(n), text) for n, text in enumerate(texts)])))
    tokenizer = bench.handler.tokenizer(bench.options)
    inputs = [[2, *tokenizer.read(text.encode())[0], 3] for text in texts]  # type: ignore[misc]
    expected = rendering(folder, inputs, mask)
    np.testing.assert_allclose(found.columns["score"], expected, rtol=1e-4)


@pytest.mark.parametrize("name", ["ESM-1b", "ESM-C", "Nucleotide Transformer v2", "GENA-LM"])
@pytest.mark.parametrize("scores", ["one-pass", "masked"])
def test_other_heads_are_found_by_their_architecture(
    make_bench: MakeBench, tmp_path: Path, name: str, scores: str
) -> None:
    """With a vocabulary of V tokens, random weights give about log(1 / V) to each."""
    model = published.MODELS[name]
    folder = published.write(tmp_path / "model", name)
    bench = make_bench(model=str(folder), scores=scores)
    found = bench.embed(bench.file(fasta([("a", model.inputs[0]), ("b", model.inputs[1])])))
    ids = published.ids(folder, name, model.inputs[0])
    before, after = bench.handler.tokenizer(bench.options).edges
    if name.endswith("v2"):  # transformers has no such model
        assert (found.columns["score"] < 0).all()
        return
    own = range(before, len(ids) - after)
    mask = {"ESM-1b": 32, "ESM-C": 32, "GENA-LM": 4}[name] if scores == "masked" else None
    reference = hf.AutoModelForMaskedLM.from_pretrained(folder, attn_implementation="eager").eval()
    expected = pseudo_log_likelihood(reference, ids, own, mask)
    assert found.columns["score"][0] == pytest.approx(expected, rel=1e-4)


def test_of_a_truncated_sequence_what_is_read_is_scored_and_windows_are_added_up(
    esm2: Path, make_bench: MakeBench
) -> None:
    text = PROTEINS[0]
    windows = make_bench(model=str(esm2), scores="one-pass", max_residues=11, long="window")
    parts = windows.embed(windows.file(fasta([("whole", text)])))
    cut = make_bench(model=str(esm2), scores="one-pass", max_residues=11)
    halves = cut.embed(cut.file(fasta([("first", text), ("second", text[11:])]), "halves.faa"))
    assert parts.columns["score"][0] == pytest.approx(halves.columns["score"].sum(), rel=1e-5)


def test_an_interrupted_claim_gives_the_same_scores(esm2: Path, make_bench: MakeBench) -> None:
    bench = make_bench(model=str(esm2), scores="one-pass", tokens_per_batch=24)
    (item,) = bench.plan(bench.file(fasta([(str(n), PROTEINS[n % 3]) for n in range(9)])))
    whole = bench.run(item)
    answers = iter([False, False, True])
    with pytest.raises(Exception, match="stopped between two batches"):
        bench.handler.run(bench.work(item, stop=lambda: next(answers, True)))
    assert bench.run(item) == whole


def test_a_masked_score_is_planned_at_its_cost(esm2: Path, make_bench: MakeBench) -> None:
    costs = {}
    for scores in (None, "masked"):
        bench = make_bench(model=str(esm2), scores=scores)
        (item,) = bench.plan(bench.file(fasta([("a", "MKV" * 100)])))
        costs[scores] = item.cost
    assert costs["masked"] == pytest.approx(301 * costs[None], rel=0.01)


# ---- what is refused when it is planned ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "per-token"}, "--scores with --pooling per-token"),
        ({"long": "window", "overlap": 5}, "--scores with --overlap"),
        ({"format": "esm"}, "--format esm: these files hold vectors only"),
    ],
)
def test_options_that_do_not_go_with_scores_are_refused(
    esm2: Path, make_bench: MakeBench, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        make_bench(model=str(esm2), scores="one-pass", **options)


def test_a_store_keeps_no_scores(esm2: Path, make_bench: MakeBench, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--scores with --store"):
        make_bench(model=str(esm2), scores="one-pass", store=str(tmp_path / "store"))


def test_models_without_a_head_are_refused(
    tiny_model: Path, make_bench: MakeBench, tmp_path: Path
) -> None:
    folders = {name: generic_models.write_model(tmp_path / name, name) for name in ("gpt2", "t5")}
    folders["headless"] = tiny_model
    dnabert.write_model(tmp_path / "dnabert")
    folders["dnabert"] = tmp_path / "dnabert"
    for folder in folders.values():
        with pytest.raises(UsageError, match="has no masked-LM head, which says how likely"):
            make_bench(model=str(folder), scores="one-pass")


def test_without_a_mask_token_nothing_can_be_masked(
    esm2: Path, make_bench: MakeBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = generic_models.write_model(tmp_path / "bert", "bert")
    monkeypatch.setattr(masked_lm, "MASK_TOKENS", ("<any>",))
    make_bench(model=str(folder), scores="one-pass")
    with pytest.raises(UsageError, match="has no mask token .*--scores one-pass"):
        make_bench(model=str(folder), scores="masked")


# ---- as a user has them ----


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["safetensors", "npz", "h5", "parquet"])
def test_every_format_has_the_scores(esm2: Path, tmp_path: Path, ending: str) -> None:
    (tmp_path / "x.faa").write_text(fasta([(f"p{n}", text) for n, text in enumerate(PROTEINS)]))
    out = tmp_path / f"out.{ending}"
    words = ["file", str(tmp_path / "x.faa"), "-o", str(out), "--model", str(esm2)]
    done = CliRunner().invoke(command, [*words, "--scores", "one-pass"])
    assert done.exit_code == 0, done.output
    if ending == "h5":
        with h5py.File(out) as file:
            found = [file[f"p{n}"].attrs["score"] for n in range(3)]
    elif ending == "parquet":
        found = pyarrow.parquet.read_table(out)["score"].to_pylist()
    else:
        table = np.load(out) if ending == "npz" else read(out).columns
        found = table["score"].tolist()
    np.testing.assert_allclose(found, rendering(esm2, [esm_ids(t) for t in PROTEINS], None), 1e-4)
