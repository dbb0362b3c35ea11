from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsqueue.gpu.weights import GPU_WEIGHTS, get_gpu_weight, nearest_model, short_name

LETTERS = "ABDGHLNRSTVXabdeghilnoprstuvx0123456789 -_.()\n"


@pytest.mark.parametrize(
    ("model", "weight"),
    [
        ("RTX 3080", 0.90),
        ("RTX 3090", 1.00),
        ("RTX 4080", 1.35),
        ("RTX 4090", 1.50),
        ("RTX A6000", 1.10),
        ("A100", 1.20),
        ("H100", 2.50),
        ("V100 16GB", 0.75),
        ("V100 32GB", 0.80),
    ],
)
def test_the_nine_given_weights_stand(model: str, weight: float) -> None:
    assert GPU_WEIGHTS[model] == weight


def test_every_weight_is_a_plausible_throughput_and_no_gpu_is_a_cpu() -> None:
    cpu = GPU_WEIGHTS["cpu"]
    assert 0 < cpu < 0.1
    assert all(0.3 <= weight <= 4 for model, weight in GPU_WEIGHTS.items() if model != "cpu")


@pytest.mark.parametrize(
    "slower_to_faster",
    [
        ["RTX 2060", "RTX 2070", "RTX 2080 Ti"],
        ["RTX 3050", "RTX 3060", "RTX 3060 Ti", "RTX 3070", "RTX 3080", "RTX 3080 Ti", "RTX 3090"],
        ["RTX 3090", "RTX 3090 Ti"],
        ["RTX 4060", "RTX 4060 Ti", "RTX 4070", "RTX 4070 SUPER", "RTX 4070 Ti"],
        ["RTX 4070 Ti", "RTX 4070 Ti SUPER", "RTX 4080", "RTX 4080 SUPER", "RTX 4090"],
        ["RTX 4080 SUPER", "RTX 4090"],
        ["RTX 5050", "RTX 5060", "RTX 5060 Ti", "RTX 5070", "RTX 5070 Ti", "RTX 5080", "RTX 5090"],
        ["RTX A2000", "RTX A4000", "RTX A5000", "RTX A6000", "RTX 6000 Ada"],
        ["T4", "L4", "L40", "L40S"],
        ["A30", "A100", "H100", "GH200", "H200", "B200"],
    ],
)
def test_within_a_family_a_bigger_card_never_weighs_less(slower_to_faster: list[str]) -> None:
    weights = [GPU_WEIGHTS[model] for model in slower_to_faster]
    assert weights == sorted(weights)


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("NVIDIA GeForce RTX 3090", "RTX 3090"),
        ("GeForce RTX 2080 Ti", "RTX 2080 Ti"),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", "RTX 4070 Ti SUPER"),
        ("NVIDIA GeForce RTX 2070 Super", "RTX 2070 SUPER"),
        ("NVIDIA GeForce RTX 4090 D", "RTX 4090 D"),
        ("NVIDIA RTX A6000", "RTX A6000"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("Quadro RTX 6000", "RTX 6000"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "RTX PRO 6000 Blackwell"),
        ("NVIDIA TITAN RTX", "TITAN RTX"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A100 80GB PCIe", "A100"),
        ("A100-PCIE-40GB", "A100"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100"),
        ("NVIDIA H100 NVL", "H100"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA GH200 480GB", "GH200"),
        ("NVIDIA GH200 144G HBM3e", "GH200"),
        ("Tesla T4", "T4"),
        ("Tesla P100-PCIE-16GB", "P100"),
        ("Tesla V100-SXM2-16GB", "V100 16GB"),
        ("Tesla V100-DGXS-32GB", "V100 32GB"),
    ],
)
def test_a_drivers_name_is_the_model_without_vendor_and_package(name: str, model: str) -> None:
    assert short_name(name) == model
    assert model in GPU_WEIGHTS


@pytest.mark.parametrize(
    ("typed", "model"),
    [
        ("4090", "RTX 4090"),
        ("rtx3090", "RTX 3090"),
        ("RTX-4090", "RTX 4090"),
        ("3080ti", "RTX 3080 Ti"),
        ("4070 ti super", "RTX 4070 Ti SUPER"),
        ("a6000", "RTX A6000"),
        ("6000 ada", "RTX 6000 Ada"),
        ("a100-80gb", "A100"),
        ("a100_40gb", "A100"),
        ("l40s", "L40S"),
        ("v100-32g", "V100 32GB"),
        ("V100_16GB", "V100 16GB"),
        ("CPU", "cpu"),
    ],
)
def test_a_person_may_leave_out_what_is_plain(typed: str, model: str) -> None:
    assert short_name(typed) == model


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA GeForce RTX 3060 Laptop GPU",
        "NVIDIA GeForce RTX 2080 with Max-Q Design",
        "NVIDIA GeForce RTX 4090 D v2",
        "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition",
        "NVIDIA RTX A1000",
        "NVIDIA RTX A500",
        "NVIDIA A100X",
        "GRID A100-40C",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "Tesla V100S-PCIE-32GB",
        "NVIDIA GB200",
        "NVIDIA H20",
        "NVIDIA L400",
        "Quadro 6000",
        "Quadro P4000",
        "GeForce GTX 1080",
        "NVIDIA T400",
        "A1000",
        "0",
        "80GB",
        "NVIDIA",
        "RTX",
        "",
    ],
)
def test_another_card_is_never_taken_for_one_in_the_table(name: str) -> None:
    assert short_name(name) not in GPU_WEIGHTS


def test_an_unknown_name_loses_its_vendor_only() -> None:
    assert short_name("NVIDIA  GeForce RTX 3060 Laptop GPU") == "RTX 3060 Laptop GPU"
    assert short_name("AMD Instinct MI250X") == "AMD Instinct MI250X"


@pytest.mark.parametrize(
    ("name", "memory_gib", "model"),
    [
        ("Tesla V100-SXM2", None, "V100"),
        ("Tesla V100-SXM2", 15.8, "V100 16GB"),
        ("Tesla V100-SXM2", 31.7, "V100 32GB"),
        ("Tesla V100-SXM2-16GB", 31.7, "V100 16GB"),
        ("A100-SXM4", 79.2, "A100"),
    ],
)
def test_memory_decides_only_where_a_v100s_name_does_not(
    name: str, memory_gib: float | None, model: str
) -> None:
    assert short_name(name, memory_gib=memory_gib) == model


@pytest.mark.parametrize("model", sorted(GPU_WEIGHTS))
def test_a_model_in_the_table_is_its_own_short_name(model: str) -> None:
    assert short_name(model) == short_name(f"NVIDIA {model.lower()}") == model


@pytest.mark.parametrize(
    ("name", "model", "weight"),
    [
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "A100 MIG 1g.5gb", 0.17),
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", "A100 MIG 3g.20gb", 0.51),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb+me", "H100 MIG 1g.10gb+me", 0.36),
        ("NVIDIA H100 80GB HBM3 MIG 1c.3g.40gb", "H100 MIG 1c.3g.40gb", 0.36),
        ("NVIDIA A30 MIG 2g.12gb", "A30 MIG 2g.12gb", 0.38),
        ("h100 mig 7g.80gb", "H100 MIG 7g.80gb", 2.5),
    ],
)
def test_a_mig_instance_has_its_part_of_its_cards_weight(
    name: str, model: str, weight: float
) -> None:
    assert short_name(name) == short_name(model) == model
    assert get_gpu_weight(name) == pytest.approx(weight, abs=0.01)


def test_an_instance_of_an_unknown_card_is_unknown(caplog: pytest.LogCaptureFixture) -> None:
    assert get_gpu_weight("NVIDIA B999 MIG 1g.50gb") == 1.0
    assert "using default weight" in caplog.text


@given(st.text(LETTERS, max_size=30))
def test_a_short_name_is_final(name: str) -> None:
    assert short_name(short_name(name)) == short_name(name)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("NVIDIA GeForce RTX 3060 Laptop GPU", "RTX 3060"),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "A100"),
        ("Tesla V100S-PCIE-32GB", "V100"),
        ("NVIDIA RTX 6000 Ada Lovelace", "RTX 6000 Ada"),
        ("NVIDIA RTX A5500", "RTX A5000"),
        ("AMD Instinct MI250X", None),
        ("", None),
    ],
)
def test_the_nearest_model_is_the_one_whose_name_it_extends_or_resembles(
    name: str, near: str | None
) -> None:
    assert nearest_model(name) == near
