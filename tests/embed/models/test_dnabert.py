"""DNABERT against an independent implementation of its architecture, and against known mistakes."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from embed.models.dnabert import network
from embed.models.dnabert.network import BEGIN, END, DnabertEncoder, load, slopes
from embed.models.dnabert.shape import DnabertShape
from embed.models.dnabert.tokenizer import DnaTokenizer, unknown
from fsqueue import ClaimImpossible, UsageError
from tests.support.dnabert import PUBLISHED, SIZE, checkpoint_names, reference_states, write_model

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
CONFIG = {**PUBLISHED, **SIZE}
LENGTHS = (1, 2, 3, 9, 40, 40, 40, 95, 150)

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny_dnabert"
    write_model(path)
    return path


@pytest.fixture(scope="module")
def weights(folder: Path) -> Weights:
    return torch.load(folder / "pytorch_model.bin", weights_only=True)


@pytest.fixture(scope="module")
def encoder(folder: Path) -> DnabertEncoder:
    return load(str(folder), "float32", CPU)


@pytest.fixture(scope="module")
def tokens(folder: Path) -> DnaTokenizer:
    return DnaTokenizer(str(folder))


@pytest.fixture(scope="module")
def sequences() -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.integers(0, 200, n).astype(np.uint16) for n in LENGTHS]


def whole(ids: np.ndarray) -> list[int]:
    return [BEGIN, *ids.tolist(), END]


def dna(bases: int, seed: int = 1) -> bytes:
    return bytes(random.Random(seed).choices(b"ACGT", k=bases))


def worst(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    return max((a - b).abs().max().item() for a, b in zip(found, expected, strict=True))


# ---- the right numbers ----


def test_a_pack_equals_the_published_architecture(
    encoder: DnabertEncoder, weights: Weights, sequences: list[np.ndarray]
) -> None:
    expected = reference_states(weights, CONFIG, [whole(ids) for ids in sequences])
    assert worst(encoder.hidden(sequences).split(), expected) < 1e-5


def test_a_pack_equals_each_sequence_alone(
    encoder: DnabertEncoder, sequences: list[np.ndarray]
) -> None:
    alone = [encoder.hidden([ids]).split()[0] for ids in sequences]
    assert worst(encoder.hidden(sequences).split(), alone) < 1e-5


@pytest.mark.parametrize(("dtype", "least"), [("bfloat16", 0.999), ("float16", 0.99999)])
def test_half_precision_works_and_is_near(
    folder: Path, encoder: DnabertEncoder, sequences: list[np.ndarray], dtype: str, least: float
) -> None:
    """The published code fails here: its float32 bias meets half precision scores."""
    half = load(str(folder), dtype, CPU).hidden(sequences).split()
    assert {states.dtype for states in half} == {getattr(torch, dtype)}
    for one, two in zip(half, encoder.hidden(sequences).split(), strict=True):
        assert torch.cosine_similarity(one.float().mean(0), two.mean(0), dim=0) > least


@pytest.mark.slow
def test_the_published_size_agrees_with_the_reference(tmp_path: Path) -> None:
    size = {"hidden_size": 768, "num_hidden_layers": 2, "intermediate_size": 3072}
    weights = write_model(tmp_path / "m", **size)
    ids = [np.arange(n, dtype=np.uint16) % 200 for n in (30, 108, 108, 120)]
    expected = reference_states(weights, {**CONFIG, **size}, [whole(row) for row in ids])
    assert (
        worst(load(str(tmp_path / "m"), "float32", CPU).hidden(ids).split(), expected) < 3e-5
    )  # 1.0e-5 on an EPYC
    half = load(str(tmp_path / "m"), "bfloat16", CPU).hidden(ids).split()
    for one, two in zip(half, expected, strict=True):
        assert torch.cosine_similarity(one.float().mean(0), two.mean(0), dim=0) > 0.999


def test_the_slopes_are_those_published() -> None:
    assert slopes(8) == [2.0**-n for n in range(1, 9)]
    assert slopes(16) == pytest.approx([2.0 ** (-n / 2) for n in range(1, 17)])
    assert slopes(12) == pytest.approx([*slopes(8), *slopes(16)[0:8:2]])
    assert slopes(1) == [2.0**-8]


@pytest.mark.parametrize("limit", [1, 700, 12 * 152 * 152])
def test_a_long_sequence_attends_in_portions_to_the_same_numbers(
    encoder: DnabertEncoder,
    sequences: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    limit: int,
    folder: Path,
) -> None:
    expected = encoder.hidden(sequences).split()
    monkeypatch.setattr(network, "BIAS_MAX", limit)
    again = load(str(folder), "float32", CPU)
    assert worst(again.hidden(sequences).split(), expected) < 1e-5


def test_neighbours_and_earlier_batches_change_nothing(
    encoder: DnabertEncoder, sequences: list[np.ndarray]
) -> None:
    expected = encoder.hidden(sequences[3:4]).split()
    encoder.hidden([np.arange(180, dtype=np.uint16)])
    assert worst(encoder.hidden([*sequences[:1], *sequences[3:4]]).split()[1:], expected) < 1e-5


# ---- the checkpoint: every tensor used, none missing ----


def test_the_names_and_shapes_are_those_published() -> None:
    shape = DnabertShape(4096, 768, 12, 12, 3072, 2, 1e-12)
    expected = shape.tensors()
    heads = ["pooler.dense.weight", "pooler.dense.bias"]
    assert [*expected, *heads] == checkpoint_names(12)
    assert expected["encoder.layer.11.attention.self.Wqkv.weight"] == (2304, 768)
    assert expected["encoder.layer.0.mlp.gated_layers.weight"] == (6144, 768)
    pooler = 768 * 768 + 768
    assert sum(int(np.prod(size)) for size in expected.values()) + pooler == 117_068_544


def test_a_masked_language_model_s_checkpoint_gives_the_same_numbers(
    tmp_path: Path,
    folder: Path,
    weights: Weights,
    encoder: DnabertEncoder,
    sequences: list[np.ndarray],
) -> None:
    copied = copy(folder, tmp_path / "mlm")
    named = {f"bert.{name}": w for name, w in weights.items() if not name.startswith("pooler")}
    named["cls.predictions.bias"] = torch.zeros(200)
    named["cls.predictions.decoder.weight"] = named["bert.embeddings.word_embeddings.weight"]
    torch.save(named, copied / "pytorch_model.bin")
    again = load(str(copied), "float32", CPU)
    assert worst(again.hidden(sequences).split(), encoder.hidden(sequences).split()) == 0


def test_safetensors_are_preferred_and_give_the_same_numbers(
    tmp_path: Path,
    folder: Path,
    weights: Weights,
    encoder: DnabertEncoder,
    sequences: list[np.ndarray],
) -> None:
    copied = copy(folder, tmp_path / "safe")
    save_file(weights, copied / "model.safetensors")
    (copied / "pytorch_model.bin").write_bytes(b"never read")
    again = load(str(copied), "float32", CPU)
    assert worst(again.hidden(sequences).split(), encoder.hidden(sequences).split()) == 0


@pytest.mark.parametrize("name", checkpoint_names(3)[:-2])
def test_a_checkpoint_with_any_missing_tensor_is_refused(weights: Weights, name: str) -> None:
    shape = DnabertShape(200, 48, 3, 12, 80, 2, 1e-12)
    holed = {other: tensor for other, tensor in weights.items() if other != name}
    with pytest.raises(ClaimImpossible, match=rf"are missing \(1; the first is {name}\)"):
        network.encoder_weights(holed, shape, "folder")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"encoder.layer.3.mlp.wo.bias": torch.zeros(48)}, "unknown .*encoder.layer.3.mlp.wo.bias"),
        (
            {"embeddings.position_embeddings.weight": torch.zeros(1)},
            "unknown .*embeddings.position",
        ),
        ({"encoder.layer.1.mlp.wo.bias": torch.zeros(47)}, "of another shape .*encoder.layer.1"),
    ],
)
def test_a_checkpoint_of_another_architecture_is_refused(
    weights: Weights, change: Weights, words: str
) -> None:
    shape = DnabertShape(200, 48, 3, 12, 80, 2, 1e-12)
    with pytest.raises(ClaimImpossible, match=words):
        network.encoder_weights({**weights, **change}, shape, "folder")


class Exploit:
    """Unpickling this would make a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


def test_nothing_in_a_checkpoint_is_ever_run(folder: Path, tmp_path: Path) -> None:
    copied = copy(folder, tmp_path / "evil")
    torch.save({"x": Exploit(str(tmp_path / "ran"))}, copied / "pytorch_model.bin")
    with pytest.raises(ClaimImpossible, match="never loaded"):
        load(str(copied), "float32", CPU)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("keep", [0, 10, 5000])
def test_a_truncated_checkpoint_is_refused(folder: Path, tmp_path: Path, keep: int) -> None:
    copied = copy(folder, tmp_path / "cut")
    data = (copied / "pytorch_model.bin").read_bytes()
    (copied / "pytorch_model.bin").write_bytes(data[:keep])
    with pytest.raises(ClaimImpossible, match=r"pytorch_model\.bin.*truncated"):
        load(str(copied), "float32", CPU)


@pytest.mark.parametrize(
    "change", [{"model_type": "esm"}, {"alibi_starting_size": None}, {"hidden_act": "relu"},
               {"num_attention_heads": 11}]
)  # fmt: skip
def test_a_config_of_another_model_is_refused(
    folder: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    copied = copy(folder, tmp_path / "other")
    config = {k: v for k, v in {**CONFIG, **change}.items() if v is not None}
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError):
        DnabertShape.read(str(copied))


# ---- known mistakes: each of these tests fails if the mistake is made ----


@pytest.mark.slow
def test_stock_transformers_would_load_random_layers_without_an_error(
    folder: Path, encoder: DnabertEncoder, sequences: list[np.ndarray]
) -> None:
    from transformers import AutoModel

    careless = AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        states = careless(torch.tensor([whole(sequences[4])])).last_hidden_state
    assert worst([states[0]], encoder.hidden(sequences[4:5]).split()) > 0.1


@pytest.mark.parametrize("mistake", [{"masked": False}, {"swapped": True}, {"biased": False}])
def test_mask_gate_and_bias_matter(
    encoder: DnabertEncoder, weights: Weights, sequences: list[np.ndarray], mistake: dict[str, bool]
) -> None:
    wrong = reference_states(weights, CONFIG, [whole(ids) for ids in sequences], **mistake)
    assert worst(encoder.hidden(sequences).split(), wrong) > 0.1


def test_fixed_padding_in_the_tokenizer_s_file_is_undone(
    folder: Path, tokens: DnaTokenizer
) -> None:
    careless = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert len(careless.encode(dna(59).decode()).ids) == 2000
    assert 5 < len(tokens.ids(dna(59))) < 59


def test_truncation_in_the_tokenizer_s_file_is_undone(tokens: DnaTokenizer) -> None:
    assert len(tokens.ids(dna(20_000))) > 2000


def test_ids_are_those_of_the_tokenizer_with_cls_and_sep_around(
    folder: Path, tokens: DnaTokenizer
) -> None:
    whole_ids = Tokenizer.from_file(str(folder / "tokenizer.json"))
    whole_ids.no_padding()
    assert whole_ids.encode(dna(300).decode()).ids == whole(tokens.ids(dna(300)))


def test_soft_masked_bases_are_read_as_upper_case(folder: Path, tokens: DnaTokenizer) -> None:
    careless = Tokenizer.from_file(str(folder / "tokenizer.json"))
    careless.no_padding()
    assert set(careless.encode("acgtacgt").ids[1:-1]) == {0}
    assert tokens.ids(dna(90).lower()).tolist() == tokens.ids(dna(90)).tolist()


def test_each_base_outside_the_vocabulary_is_one_unknown_token(tokens: DnaTokenizer) -> None:
    ids = tokens.ids(b"ACGT" + b"N" * 7 + b"ACGTRYnACGT-ACGT*")
    assert unknown(ids) == 7 + 3 + 2
    assert unknown(tokens.ids(dna(200))) == 0


def test_bytes_that_are_not_text_are_unknown_tokens_too(tokens: DnaTokenizer) -> None:
    assert unknown(tokens.ids(b"ACG\xff\xfeT")) == 2


@pytest.mark.slow
def test_ids_above_255_survive(tmp_path: Path) -> None:
    write_model(tmp_path / "large", vocab_size=600)
    ids = DnaTokenizer(str(tmp_path / "large")).ids(dna(3000))
    assert ids.max() > 255
    assert load(str(tmp_path / "large"), "float32", CPU).hidden([ids]).split()[0].shape == (
        len(ids) + 2,
        48,
    )


def test_a_tokenizer_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    copied = copy(folder, tmp_path / "swapped")
    text = (copied / "tokenizer.json").read_text()
    (copied / "tokenizer.json").write_text(text.replace("[CLS]", "<cls>"))
    with pytest.raises(ClaimImpossible, match="another model"):
        DnaTokenizer(str(copied))
    (copied / "tokenizer.json").unlink()
    with pytest.raises(ClaimImpossible, match=r"tokenizer\.json: cannot be read"):
        DnaTokenizer(str(copied))


def copy(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target
