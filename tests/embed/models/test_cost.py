"""Costs are estimated compute: whole numbers that compare across lengths, models and precisions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embed.models.cost import ELEMENT, HALF, PER_SECOND, SOFTMAX, Estimate, ModelShape

CONFIG = {
    "num_hidden_layers": 6,
    "hidden_size": 320,
    "intermediate_size": 1280,
    "num_attention_heads": 20,
}
SMALL = ModelShape(6, 320, 1280, 20)
LARGE = ModelShape(36, 2560, 10240, 40)
DNA = ModelShape(12, 768, 3072, 12, gated=True)


def cost(length: int, shape: ModelShape = SMALL, residues_max: int = 1022, **how: object) -> int:
    estimate = Estimate(shape, residues_max, **how)  # type: ignore[arg-type]
    return int(estimate.costs(np.array([length]))[0])


def test_a_model_s_shape_is_read_from_its_config() -> None:
    assert ModelShape.of(CONFIG) == SMALL
    gated = {**CONFIG, "alibi_starting_size": 512}
    assert ModelShape.of(gated) == ModelShape(6, 320, 1280, 20, gated=True)


def test_a_cost_is_what_the_layers_compute() -> None:
    tokens = 100 + 2
    linear = tokens * 6 * (2 * (4 * 320**2 + 2 * 320 * 1280) + ELEMENT * (320 + 1280))
    pairs = tokens**2 * 6 * (4 * 320 + SOFTMAX * 20)
    assert cost(100) == int(np.ceil((linear + pairs) / 1e6))


def test_truncated_residues_cost_nothing_and_windows_cost_their_sum() -> None:
    assert cost(5000) == cost(1022) > cost(1021)
    window = Estimate(SMALL, 1022, in_windows=True).costs(np.array([1022, 2044, 2045]))
    assert window[1] == pytest.approx(2 * window[0], abs=1)
    assert window[2] > window[1]
    assert cost(2044, residues_max=4000) > window[1], "longer windows have more pairs"


def test_an_empty_sequence_costs_something_and_counts_are_whole() -> None:
    found = Estimate(SMALL, 1022, in_windows=True).costs(np.array([0, 1, 1022]))
    assert found.dtype == np.int64
    assert (found >= 1).all()
    assert Estimate(SMALL, 1022).costs(np.array([], np.int64)).tolist() == []


@given(st.integers(0, 5000), st.integers(0, 5000), st.booleans())
def test_longer_never_costs_less(one: int, other: int, in_windows: bool) -> None:
    short, long = sorted((one, other))
    assert cost(short, in_windows=in_windows) <= cost(long, in_windows=in_windows)


def test_models_compare() -> None:
    """3B over 8M: its layers' products are 384 times those of the small one."""
    assert 250 < cost(300, LARGE) / cost(300, SMALL) < 400
    bases, tokens = 500, 0.22
    assert 0.02 < cost(bases, DNA, tokens_per_residue=tokens) / cost(160, LARGE) < 0.04


def test_half_precision_costs_what_it_takes_on_the_reference_gpu() -> None:
    assert cost(300, LARGE, half=True) == pytest.approx(cost(300, LARGE) / HALF, rel=1e-3)


def test_the_published_speed_of_a_4090_is_met_within_a_factor_of_two() -> None:
    """10,000 ORFs of 49 residues take ESM-2 3B 31 s in bfloat16 on an RTX 4090, of weight 1.5."""
    seconds = 10_000 * cost(49, LARGE, half=True) / (PER_SECOND * 1.5)
    assert 31 / 2 < seconds < 31 * 2
