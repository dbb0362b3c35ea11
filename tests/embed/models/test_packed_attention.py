"""Models of transformers run packed where that gives their own states, and padded where not."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf

from embed.models.conventions.convention import LAST, Layers
from embed.models.generic import network, packed_attention
from embed.models.generic.network import GenericEncoder
from embed.models.generic.tokenizer import GenericTokenizer
from embed.models.packed.kernels import Kernel
from tests.support import flash, generic_models
from tests.support import published_models as published

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
OWN_ATTENTION = ("GENA-LM", "BigBird", "DeBERTa", "MPNet", "RoFormer")
"""Models whose code computes attention in a way that cannot be replaced."""
BIASED = ("ProtT5", "ProtT5, with its decoder", "ProstT5", "Ankh")
AMPERE, TURING = (8, 0), (7, 5)
Load = Callable[..., GenericEncoder]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    root, written = tmp_path_factory.mktemp("packed"), dict[str, Path]()

    def loaded(name: str, dtype: str = "float32") -> GenericEncoder:
        if name not in written:
            written[name] = published.write(root / str(len(written)), name)
        tokenizer = GenericTokenizer(str(written[name]))
        return network.load(str(written[name]), dtype, CPU, tokenizer.frame)

    return loaded


def sequences_for(encoder: GenericEncoder) -> list[np.ndarray]:
    rng = np.random.default_rng(4)
    longest = (encoder.frame.positions or 100) - encoder.frame.count
    top = min(24, encoder.frame.vocabulary)
    return [rng.integers(5, top, min(size, longest)) for size in (90, 41, 40, 40, 12, 3, 3, 1)]


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    found, expected = found.float(), expected.float()
    return float(((found - expected).norm(dim=-1) / expected.norm(dim=-1)).max())


@pytest.mark.parametrize("name", published.MODELS)
def test_a_packed_batch_has_the_states_of_each_sequence_alone(load: Load, name: str) -> None:
    encoder = load(name)
    kernel = encoder.kernel(None)
    assert kernel is (Kernel.PADDED if name in OWN_ATTENTION else Kernel.RUNS)
    sequences = sequences_for(encoder)
    alone = [encoder.hidden([each], kernel=Kernel.PADDED).rows for each in sequences]
    for order in (range(8), (4, 0, 7, 2, 1, 6, 3, 5)):
        together = encoder.hidden([sequences[n] for n in order], kernel=kernel).split()
        for n, found in zip(order, together, strict=True):
            assert apart(found, alone[n]) < 1e-4, n


@pytest.mark.parametrize("name", ["ESM-1b", "ProtT5", "ModernBERT", "Qwen3"])
def test_packed_and_padded_batches_take_turns(load: Load, name: str) -> None:
    """A bias, a mask or a setting of one must not remain in the other; of every layer."""
    encoder = load(name)
    assert encoder.kernel(None) is Kernel.RUNS
    sequences = sequences_for(encoder)
    for layers in (LAST, Layers((0, 1, 2)), LAST):
        padded = encoder.hidden(sequences, layers, Kernel.PADDED).rows
        for _ in range(2):
            assert apart(encoder.hidden(sequences, layers, Kernel.RUNS).rows, padded) < 1e-4


@pytest.mark.parametrize("name", ["ESM-1b", "XLM-RoBERTa", "ModernBERT", "Qwen3", "GTE", *BIASED])
def test_on_a_gpu_half_precision_runs_in_one_call_of_flashattention(load: Load, name: str) -> None:
    flash.emulate()
    encoder, exact = load(name, "float16"), load(name)
    kernel = encoder.kernel(AMPERE)
    assert kernel is (Kernel.PADDED if name in BIASED else Kernel.VARLEN)
    assert encoder.kernel(TURING) is exact.kernel(AMPERE) is Kernel.PADDED
    if name in BIASED:
        return
    sequences = sequences_for(encoder)
    found = encoder.hidden(sequences, kernel=kernel).rows
    assert apart(found, exact.hidden(sequences, kernel=Kernel.PADDED).rows) < 0.1


# ---- what is not understood is found out, and padded ----


def reason(encoder: GenericEncoder, caplog: pytest.LogCaptureFixture) -> str:
    with caplog.at_level(logging.INFO, "embed.models.generic.network"):
        assert encoder.kernel(None) is encoder.kernel(None) is Kernel.PADDED
    (record,) = caplog.records
    return record.getMessage()


@pytest.mark.parametrize("name", ["XLM-RoBERTa", "ESM-1b"])
def test_wrong_positions_are_found_when_the_model_is_loaded(
    load: Load, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = load(name)
    encoder._first_position -= 1
    assert "its states would differ by" in reason(encoder, caplog)


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("ModernBERT", packed_attention.FREE),
        ("Gemma 3, bidirectional", packed_attention.CAUSAL),
        ("Qwen3", packed_attention.FREE),
        ("ELECTRA", packed_attention.CAUSAL),
    ],
)
def test_a_wrong_mask_is_found_when_the_model_is_loaded(
    load: Load,
    name: str,
    rule: packed_attention.Rule,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(packed_attention, "_rule", lambda *_: rule)
    assert "its states would differ by" in reason(load(name), caplog)


def test_scores_that_are_capped_are_padded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = hf.Gemma2Config(
        vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, intermediate_size=48, attn_logit_softcapping=5.0,
    )  # fmt: skip
    published.save(hf.Gemma2Model(config), tmp_path)
    generic_models.plain(tmp_path)
    encoder = network.load(str(tmp_path), "float32", CPU, GenericTokenizer(str(tmp_path)).frame)
    assert "cannot be packed (its scores are changed by softcap)" in reason(encoder, caplog)
    rows = encoder.hidden(sequences_for(encoder), kernel=encoder.kernel(None)).rows
    assert torch.isfinite(rows).all()
