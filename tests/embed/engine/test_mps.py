"""The GPU of a Mac: asked for by name, and used for a model only if it is right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from embed.encoder import Encoder
from embed.engine import devices, float32_fallback
from embed.engine.batching import Tokenized
from embed.engine.devices import choose_device
from embed.engine.engine import Engine
from embed.engine.mps import Mps
from embed.engine.parity import apart_by
from embed.engine.scorer import Scorer
from embed.models.conventions.convention import Convention, Mode
from embed.models.conventions.pooling import Pooler
from embed.models.packed.encoder import PackedEncoder
from fsqueue import NotSupportedError
from tests.support import fake_mps
from tests.support.fake_mps import FakeMps, MpsOnCpu

SEQUENCES = ["MKTAYIAKQRQISFVK", "MAGW", "GSHMLEDPVGSHMLEDPV"]


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> None:
    """What PyTorch says on a Mac."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "get_name", lambda: "Apple M2 Max")
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 3 << 30)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 21 << 30)


def test_without_being_asked_for_it_is_not_used(mac: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FSQUEUE_DEVICE", raising=False)
    assert not isinstance(choose_device(lambda _line: None), Mps)
    monkeypatch.setenv("FSQUEUE_DEVICE", "mps")
    found = choose_device(pytest.fail)
    assert isinstance(found, Mps) and found.name == "Apple M2 Max"
    assert found.free_bytes() == 18 << 30


@pytest.mark.parametrize(
    ("asked", "why"), [("mps", "has no MPS here: it was built without it"), ("tpu", "is unknown")]
)
@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this is a Mac")
def test_what_is_not_here_is_refused_and_never_replaced(
    asked: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FSQUEUE_DEVICE", asked)
    with pytest.raises(NotSupportedError, match=f"FSQUEUE_DEVICE={asked}.*{why}"):
        choose_device(pytest.fail)


def load(model: Path, found: Mps, dtype: str, monkeypatch: pytest.MonkeyPatch) -> Encoder:
    monkeypatch.setattr(devices, "choose_device", lambda _warn: found)
    return Encoder.load(str(model), dtype=dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_model_that_has_the_vectors_of_the_cpu_is_used(
    mac: None, tiny_model: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = Encoder.load(str(tiny_model), dtype=dtype).encode(SEQUENCES)
    encoder = load(tiny_model, MpsOnCpu(), dtype, monkeypatch)
    assert np.array_equal(encoder.encode(SEQUENCES), expected)


@pytest.mark.parametrize(
    ("dtype", "wrong"), [("float32", 1e-3), ("float16", 0.1), ("float32", np.nan)]
)
def test_a_model_that_has_other_vectors_is_left_to_other_workers(
    mac: None, tiny_model: Path, dtype: str, wrong: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotSupportedError, match="the Apple M2 Max gives other vectors"):
        load(tiny_model, MpsOnCpu(wrong), dtype, monkeypatch)


def test_large_scores_hide_no_difference_of_the_vectors() -> None:
    rows = np.array([[0.5, -0.25, -150.0], [0.125, 0.5, -90.0]], np.float32)
    other = rows + np.array([[0.005, 0, 0], [0, 0, 0]], np.float32)
    assert apart_by(other, rows, scored=True) == pytest.approx(0.01, rel=1e-3)
    assert apart_by(other, rows, scored=False) < 1e-4
    assert np.isnan(apart_by(rows * np.array([1, np.nan, 1]), rows, scored=True))


def test_the_model_that_it_was_compared_with_is_not_kept(
    mac: None, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: dict[object, object] = {}
    real = float32_fallback.with_float32_fallback
    monkeypatch.setattr(
        float32_fallback, "with_float32_fallback", lambda *a, **k: real(*a, again=kept, **k)
    )
    load(tiny_model, MpsOnCpu(), "float16", monkeypatch)
    assert not kept


def ask(encoder: PackedEncoder, found: FakeMps, engine: Engine) -> None:
    tokens = 60 if encoder.frame.vocabulary > 40 else 30
    batch = [Tokenized(n, np.full(size, 5, np.int16)) for n, size in enumerate((tokens, 9, 9, 2))]
    if encoder.frame.vocabulary <= 256:
        batch = [Tokenized(one.row, bytes(one.ids)) for one in batch]
    engine.embed(batch, pytest.fail)


@pytest.mark.usefixtures("mac")
@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("family", ["esm2", "dnabert"])
def test_every_operator_that_it_is_asked_for_exists(family: str, mode: Mode) -> None:
    """Nor may any return 64-bit floating point numbers, which Metal does not have."""
    found = FakeMps()
    encoder = getattr(fake_mps, family)(found)
    ask(encoder, found, Engine(encoder, Pooler(Convention((mode,))), found))
    names = {name for name, _ in found.asked.found}
    assert {"mm", "addmm", "linear"} & names, names
    assert [name for name in sorted(names) if not fake_mps.runs_on_mps(name)] == []
    assert torch.float64 not in {dtype for _, dtype in found.asked.found}


@pytest.mark.usefixtures("mac")
def test_so_does_every_operator_of_scores() -> None:
    found = FakeMps()
    encoder = fake_mps.esm2(found)
    scorer = Scorer(lambda states: states[:, :33], (1, 1), 33)
    ask(encoder, found, Engine(encoder, Pooler(Convention()), found, scorer=scorer))
    names = sorted({name for name, _ in found.asked.found})
    assert [name for name in names if not fake_mps.runs_on_mps(name)] == []
    assert torch.float64 not in {dtype for _, dtype in found.asked.found}


def test_an_operator_that_only_others_have_would_be_noticed() -> None:
    assert fake_mps.runs_on_mps("_log_softmax")
    assert fake_mps.runs_on_mps("_scaled_dot_product_attention_math_for_mps")
    assert not fake_mps.runs_on_mps("segment_reduce")
    assert not fake_mps.runs_on_mps("_flash_attention_forward")


@pytest.mark.skipif(not torch.backends.mps.is_available(), reason="needs the GPU of a Mac")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_on_a_mac_its_vectors_are_those_of_the_cpu(
    tiny_model: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = Encoder.load(str(tiny_model)).encode(SEQUENCES)
    monkeypatch.setenv("FSQUEUE_DEVICE", "mps")
    found = Encoder.load(str(tiny_model), dtype=dtype).encode(SEQUENCES)
    assert np.abs(found - expected).max() < (1e-4 if dtype == "float32" else 1e-2)
