"""What overflows in half precision is computed in float32; what is still not finite fails."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from embed import Encoder
from embed.models.esm2.tokenizer import VOCABULARY
from fsqueue import ClaimFailed, Interrupted
from tests.embed.conftest import Bench, fasta

MakeBench = Callable[..., Bench]
SEQUENCES = [("a", "MKVLAAGIVGLC"), ("w", "MKWLAAG"), ("b", "MKAY"), ("w2", "AW"), ("c", "GGGG")]
WEIGHT = "esm.embeddings.word_embeddings.weight"


def with_w(model: Path, target: Path, value: float) -> Path:
    """Copy a model, and make one number of W's embedding this large."""
    shutil.copytree(model, target)
    weights = load_file(target / "model.safetensors")
    weights[WEIGHT][VOCABULARY.index("W"), 0] = value
    save_file(weights, target / "model.safetensors", {"format": "pt"})
    return target


@pytest.fixture
def overflowing(tiny_model: Path, tmp_path: Path) -> Path:
    """A model that float16 cannot hold where there is a W."""
    return with_w(tiny_model, tmp_path / "overflowing", 1e6)


@pytest.mark.parametrize("pooling", ["mean", "per-token"])
def test_sequences_that_overflow_get_their_float32_rows_and_others_are_unchanged(
    make_bench: MakeBench, overflowing: Path, pooling: str
) -> None:
    half = make_bench(model=str(overflowing), dtype="float16", pooling=pooling)
    full = make_bench(model=str(overflowing), pooling=pooling)
    path = half.file(fasta(SEQUENCES))
    found, exact = half.embed(path), full.embed(path)
    assert np.isfinite(found.rows).all()
    line = "2 vectors overflowed in half precision; computing in float32 instead"
    assert half.warnings.count(line) == 1 and not full.warnings
    for n, (id, _) in enumerate(SEQUENCES):
        cuts = found.columns.get("offsets", np.arange(len(SEQUENCES) + 1))
        row, expected = (table.rows[cuts[n] : cuts[n + 1]] for table in (found, exact))
        assert np.allclose(row, expected, atol=1e-6) is (id in ("w", "w2"))
        assert np.allclose(row, expected, atol=0.05)


def test_the_model_is_loaded_again_once_and_only_if_needed(
    make_bench: MakeBench, overflowing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from embed.models import families

    loaded: list[str] = []
    real = families.load

    def counting(family: str, folder: str, dtype: str, device: object, adapter: str) -> object:
        loaded.append(dtype)
        return real(family, folder, dtype, device, adapter)

    monkeypatch.setattr(families, "load", counting)
    bench = make_bench(model=str(overflowing), dtype="float16", tokens_per_batch=8)
    bench.embed(bench.file(fasta([SEQUENCES[0], SEQUENCES[2]]), "plain.faa"))
    assert loaded == ["float16"]
    bench.embed(bench.file(fasta(SEQUENCES * 3), "w.faa"))
    assert loaded == ["float16", "float32"]


def test_interruptions_change_no_byte(make_bench: MakeBench, overflowing: Path) -> None:
    options = {"model": str(overflowing), "dtype": "float16", "tokens_per_batch": 20}
    bench = make_bench(**options)
    (item,) = bench.plan(bench.file(fasta(SEQUENCES * 4)))
    undisturbed = bench.run(item)
    bench.work(item).output.unlink()
    stops = 0
    while not bench.work(item).output.exists():
        try:
            stopping = iter([False])
            make_bench(**options).handler.run(bench.work(item, stop=partial(next, stopping, True)))
        except Interrupted:
            stops += 1
    assert stops >= 4
    assert bench.work(item).output.read_bytes() == undisturbed


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_vector_that_is_not_finite_in_float32_fails_its_claim(
    make_bench: MakeBench, tiny_model: Path, tmp_path: Path, dtype: str
) -> None:
    broken = with_w(tiny_model, tmp_path / "broken", float("nan"))
    bench = make_bench(model=str(broken), dtype=dtype)
    (item,) = bench.plan(bench.file(fasta(SEQUENCES)))
    with pytest.raises(
        ClaimFailed, match=r"2 vectors .* even in float32, the first of sequence 'w'"
    ):
        bench.run(item)
    assert not bench.work(item).output.exists()
    with pytest.raises(ClaimFailed, match="the first of sequence 1"):
        Encoder.load(str(broken), dtype=dtype).encode([text for _, text in SEQUENCES])


def test_an_encoder_falls_back_to_float32_too(overflowing: Path) -> None:
    texts = [text for _, text in SEQUENCES]
    half = Encoder.load(str(overflowing), dtype="float16").encode(texts)
    full = Encoder.load(str(overflowing)).encode(texts)
    assert np.allclose(half[[1, 3]], full[[1, 3]], atol=1e-6)
