"""ESM-2 through a real claim gives fair-esm's vectors: same weights, official shapes."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import EsmConfig, EsmModel

from embed import Encoder
from tests.embed.conftest import Bench, fasta
from tests.support import fairesm

MakeBench = Callable[..., Bench]
RESIDUES = "LAGVSERTIDPKQNFYMHWC"
RARE = "XBUZO.-"
"""What ESM-2 has tokens for besides the twenty, and fair-esm's tokenizer reads one by one."""


def sequences() -> list[str]:
    """200 sequences of 1 to 1,022 residues, most of them short: a whole claim in seconds."""
    rng = random.Random(9)
    lengths = [1, 2, 3, 1022, 1021, *(int(2 ** rng.uniform(0, 6.5)) for _ in range(195))]
    found = ["".join(rng.choices(RESIDUES, k=length)) for length in lengths]
    found[10:14] = [text + RARE for text in found[10:14]]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("size", ["esm2_t6_8M_UR50D", "esm2_t12_35M_UR50D"])
def test_a_claim_gives_the_vectors_of_fair_esm(
    make_bench: MakeBench, tmp_path: Path, size: str
) -> None:
    model = fairesm.random_model(size)
    folder = fairesm.save(model, size, tmp_path / size)
    texts = sequences()
    expected = fairesm.extract(model, texts)
    bench = make_bench(model=str(folder))
    table = bench.embed(bench.file(fasta((f"s{n}", text) for n, text in enumerate(texts))))
    assert len(table.ids) == 200 and not bench.warnings
    assert relative(table.rows, expected) <= 1e-5
    assert apart(expected) > 1e-2  # random weights, but no two sequences look alike to them
    some = [n for n, text in enumerate(texts) if len(text) < 60]  # a CPU may emulate the type
    half = Encoder.load(str(folder), dtype="bfloat16").encode([texts[n] for n in some])
    assert len(some) > 100 and cosines(half, expected[some]).min() >= 0.999


@pytest.mark.slow
def test_longer_proteins_are_truncated_as_extract_py_does(
    make_bench: MakeBench, tmp_path: Path
) -> None:
    size = "esm2_t6_8M_UR50D"
    model = fairesm.random_model(size)
    bench = make_bench(model=str(fairesm.save(model, size, tmp_path / size)))
    text = "".join(random.Random(4).choices(RESIDUES, k=1300))
    table = bench.embed(bench.file(fasta([("long", text)])))
    assert relative(table.rows, fairesm.extract(model, [text])) <= 1e-5
    assert bench.warnings == ["1 sequence was longer than --max-residues and truncated"]


@pytest.mark.parametrize("size", fairesm.SIZES)
def test_every_published_size_has_the_tensors_that_its_model_needs(size: str) -> None:
    """None missing, all of the right shape, and beside them only heads; without their gigabytes."""
    layers, width, heads = fairesm.SIZES[size]
    with torch.device("meta"):
        theirs = fairesm.esm.ESM2(layers, width, heads, alphabet="ESM-1b")
        ours = EsmModel(EsmConfig(**fairesm.config(layers, width, heads)), add_pooling_layer=False)
    published = {fairesm.published_name(k): v.shape for k, v in theirs.state_dict().items()}
    wanted = {f"esm.{name}": tensor.shape for name, tensor in ours.state_dict().items()}
    rotary = wanted.pop("esm.rotary_embeddings.inv_freq")  # one here, one in each layer there
    per_layer = "esm.encoder.layer.{}.attention.self.rotary_embeddings.inv_freq"
    assert {published.pop(per_layer.format(n)) for n in range(layers)} == {rotary}
    assert {name: published.get(name) for name in wanted} == wanted
    assert {name.split(".")[0] for name in published.keys() - wanted.keys()} <= {"lm_head", "esm"}
    assert all(".contact_head." in n or n[0] == "l" for n in published.keys() - wanted.keys())


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, as a part of the largest number of its vector."""
    return float((np.abs(found - expected).max(1) / np.abs(expected).max(1)).max())


def apart(rows: np.ndarray) -> float:
    """How far the nearest two of 20 vectors are from each other, in parts of their size."""
    some = rows[5:25] / np.linalg.norm(rows[5:25], axis=1, keepdims=True)
    return float(1 - (some @ some.T - 2 * np.eye(len(some))).max())


def cosines(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
    return np.asarray((one * two).sum(1) / lengths)
