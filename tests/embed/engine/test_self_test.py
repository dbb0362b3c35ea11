"""A device that computes wrong results is detected, and a model that depends on the batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embed.engine import self_test
from embed.engine.device import Cpu
from embed.engine.engine import Engine
from fsqueue import ClaimImpossible, WorkerBroken
from tests.support import dnabert as reference
from tests.support.dnabert import write_model

CPU = Cpu()


@pytest.mark.parametrize("family", ["esm2", "dnabert"])
def test_this_device_gives_the_known_answer(family: str) -> None:
    self_test.check_device(family, CPU)


@pytest.mark.parametrize("family", ["esm2", "dnabert"])
def test_a_device_that_computes_wrongly_stops_its_worker(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Engine.embed

    def embed(self: Engine, *args: Any) -> Any:
        rows = real(self, *args)
        rows[0, 3] += 0.01
        return rows

    monkeypatch.setattr(Engine, "embed", embed)
    with pytest.raises(WorkerBroken, match="computes wrong results"):
        self_test.check_device(family, CPU)


def test_the_known_answers_are_those_of_independent_implementations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import EsmModel

    for family in ("esm2", "dnabert"):
        (tmp_path / family).mkdir()
        self_test.write_tiny_model(family, tmp_path / family)
    model = EsmModel.from_pretrained(
        tmp_path / "esm2", add_pooling_layer=False, attn_implementation="eager"
    )
    ids = torch.tensor([[0, *self_test.IDS, 2]])
    with torch.inference_mode():
        states = model(ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
    answer = self_test.ANSWERS["esm2"]
    assert np.allclose(states[1:-1].mean(0)[: len(answer)], answer, atol=1e-5)
    monkeypatch.setattr(reference, "SLOPES_12", [2.0**-4, 2.0**-8])  # those of two heads
    weights = load_file(tmp_path / "dnabert" / "model.safetensors")
    config = {
        "num_attention_heads": self_test.HEADS,
        "num_hidden_layers": self_test.LAYERS,
        "layer_norm_eps": 1e-12,
    }
    (states,) = reference.reference_states(weights, config, [[1, *self_test.IDS, 2]])
    answer = self_test.ANSWERS["dnabert"]
    assert np.allclose(states.mean(0)[: len(answer)], answer, atol=1e-5)


def test_a_loaded_model_is_tested_and_returns_its_first_numbers(
    make_bench: Callable[..., Any], tmp_path: Path
) -> None:
    write_model(tmp_path / "dna")
    for how in ({}, {"pooling": "per-token"}, {"dtype": "bfloat16"}, {"model": f"{tmp_path}/dna"}):
        bench = make_bench(**how)
        found = bench.handler.selftest(bench.options)
        assert found["sequences"] == 3 and found["apart"] < 0.05
        assert any(found["first_numbers"])


def test_a_model_whose_numbers_depend_on_the_batch_is_refused(
    make_bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench()
    engine, tokenizer = bench.handler.engine(bench.options, print)
    real = engine.embed

    def embed(batch: list[Any], warn: Any) -> Any:
        return real(batch, warn) * len(batch)

    monkeypatch.setattr(engine, "embed", embed)
    with pytest.raises(ClaimImpossible, match="in a batch than alone"):
        self_test.check_model(engine, tokenizer, bench.options)
