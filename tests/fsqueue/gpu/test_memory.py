"""How much memory a GPU has, by the name that a person or a driver gives it."""

from __future__ import annotations

import pytest

from fsqueue.gpu.memory import MEMORY_GIB, memory_gib
from fsqueue.gpu.weights import GPU_WEIGHTS


def test_every_model_with_a_weight_has_a_size() -> None:
    assert set(GPU_WEIGHTS) - {"cpu"} == set(MEMORY_GIB)


@pytest.mark.parametrize(
    ("name", "gib"),
    [
        ("4090", 24),
        ("NVIDIA GeForce RTX 3090", 24),
        ("h100", 80),
        ("a100", 80),
        ("a100-40gb", 40),
        ("NVIDIA A100-SXM4-40GB", 40),
        ("NVIDIA H100 80GB HBM3", 80),
        ("V100 16GB", 16),
        ("v100", 32),
        ("RTX 3080", 12),
        ("cpu", None),
        ("a card of tomorrow", None),
        ("a card of tomorrow 300 GB", 300),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", 5),
        ("H100 MIG 3g.40gb", 40),
    ],
)
def test_a_size_in_the_name_counts_else_the_largest_of_the_model(
    name: str, gib: float | None
) -> None:
    assert memory_gib(name) == gib
