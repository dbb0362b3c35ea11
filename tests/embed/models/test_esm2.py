"""The packed encoder against an independent implementation of ESM-2, and against known mistakes."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import EsmForMaskedLM, EsmModel

from embed.models.esm2.network import Esm2Encoder, load
from embed.models.esm2.tokenizer import BEGIN, END, token_ids
from fsqueue import ClaimImpossible

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
INV_FREQ = "encoder.layer.0.attention.self.rotary_embeddings.inv_freq"
LENGTHS = (1, 2, 3, 17, 40, 40, 40, 95, 300)


@pytest.fixture(scope="module")
def encoder(tiny_model: Path) -> Esm2Encoder:
    return load(str(tiny_model), "float32", CPU)


@pytest.fixture(scope="module")
def sequences() -> list[bytes]:
    rng = torch.Generator().manual_seed(3)
    return [bytes(torch.randint(4, 24, (n,), generator=rng).tolist()) for n in LENGTHS]


def reference(folder: Path, ids: bytes, *, scale: float = 0.88) -> torch.Tensor:
    """ESM-2 as published, one sequence, from the checkpoint's tensors and nothing else."""
    weights = load_file(folder / "model.safetensors")
    weights = {name.removeprefix("esm."): tensor for name, tensor in weights.items()}
    config = json.loads((folder / "config.json").read_text())
    heads, width = config["num_attention_heads"], config["hidden_size"]

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, (width,), weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-12)

    def rotated(x: torch.Tensor) -> torch.Tensor:
        angle = torch.outer(torch.arange(len(ids) + 2.0), weights[INV_FREQ])
        angle = torch.cat([angle, angle], dim=1)
        one, two = x.chunk(2, dim=-1)
        return x * angle.cos() + torch.cat([-two, one], dim=-1) * angle.sin()

    def split(x: torch.Tensor) -> torch.Tensor:
        return x.view(len(x), heads, -1).transpose(0, 1)

    tokens = torch.tensor([BEGIN, *ids, END])
    x = weights["embeddings.word_embeddings.weight"][tokens] * scale
    for layer in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{layer}"
        y = norm(x, f"{at}.attention.LayerNorm")
        q, k, v = (split(linear(y, f"{at}.attention.self.{n}")) for n in ("query", "key", "value"))
        scores = rotated(q / math.sqrt(width // heads)) @ rotated(k).transpose(1, 2)
        y = (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)
        x = x + linear(y, f"{at}.attention.output.dense")
        y = F.gelu(linear(norm(x, f"{at}.LayerNorm"), f"{at}.intermediate.dense"))
        x = x + linear(y, f"{at}.output.dense")
    return norm(x, "encoder.emb_layer_norm_after")


def worst(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    return max((a - b).abs().max().item() for a, b in zip(found, expected, strict=True))


def padded(folder: Path, sequences: list[bytes], *, mask: bool = True) -> list[torch.Tensor]:
    """Stock transformers: a padded batch with scaled dot product attention."""
    model = EsmModel.from_pretrained(
        folder, add_pooling_layer=False, attn_implementation="sdpa"
    ).eval()
    ids = torch.full((len(sequences), max(map(len, sequences)) + 2), 1)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence) + 2] = torch.tensor([BEGIN, *sequence, END])
    with torch.inference_mode():
        hidden = model(ids, attention_mask=(ids != 1).long() if mask else None).last_hidden_state
    return [states[: len(ids) + 2] for states, ids in zip(hidden, sequences, strict=True)]


# ---- the right numbers ----


def test_a_pack_equals_the_published_architecture(
    tiny_model: Path, encoder: Esm2Encoder, sequences: list[bytes]
) -> None:
    expected = [reference(tiny_model, ids) for ids in sequences]
    assert worst(encoder.hidden(sequences).split(), expected) < 1e-5


def test_a_pack_equals_each_sequence_alone(encoder: Esm2Encoder, sequences: list[bytes]) -> None:
    alone = [encoder.hidden([ids]).split()[0] for ids in sequences]
    assert worst(encoder.hidden(sequences).split(), alone) < 1e-5


def test_a_pack_equals_stock_transformers_with_padding_and_mask(
    tiny_model: Path, encoder: Esm2Encoder, sequences: list[bytes]
) -> None:
    assert worst(encoder.hidden(sequences).split(), padded(tiny_model, sequences)) < 1e-5


def test_neighbours_in_the_pack_change_nothing(
    encoder: Esm2Encoder, sequences: list[bytes]
) -> None:
    first = encoder.hidden(sequences).split()
    others = [sequences[3], token_ids(b"WWWWWWW"), *sequences[:2], token_ids(b"CCCC")]
    assert worst(encoder.hidden(others).split()[:1], first[3:4]) < 1e-5


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_near_and_pools_in_float32(
    tiny_model: Path, encoder: Esm2Encoder, sequences: list[bytes], dtype: str
) -> None:
    half = [
        states[1:-1].float().mean(0)
        for states in load(str(tiny_model), dtype, CPU).hidden(sequences).split()
    ]
    full = [states[1:-1].float().mean(0) for states in encoder.hidden(sequences).split()]
    assert {vector.dtype for vector in half} == {torch.float32}
    for one, two in zip(half, full, strict=True):
        assert torch.cosine_similarity(one, two, dim=0) > 0.999


def test_positions_begin_anew_in_every_sequence(encoder: Esm2Encoder) -> None:
    """Only differences of positions count, but far from 0 an angle has lost its last digits."""
    sequence = token_ids(b"MKVLAAGIVGLCAKAY" * 50)
    alone = encoder.hidden([sequence]).split()
    assert worst(encoder.hidden([sequence] * 60).split()[-1:], alone) < 1e-5


# ---- known mistakes: each of these tests fails if the mistake is made ----


def test_without_a_mask_padding_would_change_the_numbers(
    tiny_model: Path, encoder: Esm2Encoder, sequences: list[bytes]
) -> None:
    careless = padded(tiny_model, sequences, mask=False)
    assert worst(encoder.hidden(sequences).split(), careless) > 0.1


def test_token_dropout_scales_by_088(
    tiny_model: Path, encoder: Esm2Encoder, sequences: list[bytes]
) -> None:
    unscaled = [reference(tiny_model, ids, scale=1.0) for ids in sequences]
    assert worst(encoder.hidden(sequences).split(), unscaled) > 0.01


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_inv_freq_comes_from_the_checkpoint(tiny_model: Path, dtype: str) -> None:
    """Released checkpoints hold it rounded to fp16, as the model was trained; and in half precision
    it must not be rounded once more."""
    found = load(str(tiny_model), dtype, CPU).inv_freq
    saved = load_file(tiny_model / "model.safetensors")[f"esm.{INV_FREQ}"]
    assert found.dtype == torch.float32
    assert torch.equal(found, saved)
    config = EsmModel.config_class.from_pretrained(tiny_model)
    fresh, _ = EsmModel(config).rotary_embeddings.compute_default_rope_parameters(config)
    assert not torch.equal(saved, fresh)


def test_a_checkpoint_with_a_missing_weight_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "holed")
    weights = load_file(tmp_path / "holed" / "model.safetensors")
    del weights["esm.encoder.layer.1.output.dense.weight"]
    save_file(weights, tmp_path / "holed" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ClaimImpossible, match=r"encoder.layer.1.output.dense.weight"):
        load(str(tmp_path / "holed"), "float32", CPU)


def test_files_of_save_pretrained_give_the_same_numbers(
    tiny_model: Path, tmp_path: Path, encoder: Esm2Encoder, sequences: list[bytes]
) -> None:
    EsmForMaskedLM.from_pretrained(tiny_model).save_pretrained(tmp_path / "mlm")
    EsmModel.from_pretrained(tiny_model, add_pooling_layer=False).save_pretrained(tmp_path / "own")
    for folder in (tmp_path / "mlm", tmp_path / "own"):
        again = load(str(folder), "float32", CPU)
        assert worst(again.hidden(sequences).split(), encoder.hidden(sequences).split()) == 0


def test_dropout_is_off(encoder: Esm2Encoder, sequences: list[bytes]) -> None:
    assert worst(encoder.hidden(sequences).split(), encoder.hidden(sequences).split()) == 0


def test_loading_prints_nothing(tiny_model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load(str(tiny_model), "float32", CPU)
    assert capfd.readouterr() == ("", "")
