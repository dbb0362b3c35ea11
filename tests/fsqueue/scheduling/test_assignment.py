from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsqueue.gpu import weights as module
from fsqueue.gpu.weights import DEFAULT_WEIGHT, GPU_WEIGHTS, get_gpu_weight
from fsqueue.scheduling.assignment import assign, assign_files_weighted
from tests.support.nvml.fake_driver import Driver, install, unplug

NINE = [0.90, 1.0, 1.35, 1.5, 1.1, 1.2, 2.5, 0.75, 0.80]

many_costs = st.lists(st.integers(0, 1000), max_size=40)
some_weights = st.lists(st.sampled_from(NINE), min_size=1, max_size=6)


@pytest.fixture(autouse=True)
def nothing_warned_of_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_warned", set())


def counts(slots: Sequence[int], n: int) -> list[int]:
    return [list(slots).count(slot) for slot in range(n)]


def totals(costs: Sequence[float], slots: Sequence[int], n: int) -> list[float]:
    loads = [0.0] * n
    for cost, slot in zip(costs, slots, strict=True):
        loads[slot] += cost
    return loads


# ---- the weight of a GPU ----


def test_a_known_model_has_the_weight_of_the_table() -> None:
    assert get_gpu_weight("NVIDIA GeForce RTX 4090") == 1.5
    assert get_gpu_weight("a100-80gb") == 1.2
    assert get_gpu_weight("cpu") == GPU_WEIGHTS["cpu"]


def test_a_v100_of_unknown_size_counts_as_the_smaller() -> None:
    assert get_gpu_weight("Tesla V100-SXM2") == 0.75
    assert get_gpu_weight("Tesla V100-SXM2", memory_gib=31.7) == 0.80


def test_an_unknown_model_weighs_one_and_is_warned_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name in ("NVIDIA Wonder 9000", "Wonder 9000", "NVIDIA Wonder 9000"):
        assert get_gpu_weight(name) == DEFAULT_WEIGHT == 1.0
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "Unknown GPU 'NVIDIA Wonder 9000' - using default weight 1.0")
    ]


def test_the_warning_names_the_nearest_model(caplog: pytest.LogCaptureFixture) -> None:
    get_gpu_weight("NVIDIA GeForce RTX 3080 Laptop GPU")
    get_gpu_weight("NVIDIA GeForce RTX 4090 Laptop GPU")
    assert [record.getMessage() for record in caplog.records] == [
        "Unknown GPU 'NVIDIA GeForce RTX 3080 Laptop GPU' - using default weight 1.0"
        " (nearest known: RTX 3080, 0.90)",
        "Unknown GPU 'NVIDIA GeForce RTX 4090 Laptop GPU' - using default weight 1.0"
        " (nearest known: RTX 4090, 1.50)",
    ]


@given(st.none() | st.integers() | st.text("ARTXV0123489 -\0\n\ud800é", max_size=20))
def test_no_device_raises(device: int | str | None) -> None:
    assert get_gpu_weight(device) > 0


def test_nothing_is_a_gpu_of_default_weight() -> None:
    assert get_gpu_weight(None) == get_gpu_weight("") == DEFAULT_WEIGHT


def test_an_index_is_looked_up_as_nvidia_smi_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver: Driver = install(monkeypatch, tmp_path)
    driver.add(0, "NVIDIA H100 PCIe", "GPU-a", gib=80)
    driver.add(1, "Tesla V100-SXM2", "GPU-b", gib=32)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert [get_gpu_weight(index) for index in (0, 1, 2)] == [2.5, 0.8, DEFAULT_WEIGHT]


def test_an_index_means_nothing_on_a_machine_without_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    unplug(monkeypatch, tmp_path)
    assert get_gpu_weight(0) == DEFAULT_WEIGHT
    assert "Unknown GPU 'index 0'" in caplog.text


# ---- assign ----


def test_w2_an_h100_gets_two_and_a_half_times_the_files_of_a_3090() -> None:
    assert counts(assign([1] * 35, [1.0, 2.5]), 2) == [10, 25]


def test_w3_uneven_costs_are_balanced_by_cost_and_not_by_count() -> None:
    costs = [50_000, 20_000, 20_000, 10_000, 10_000, 5_000, 5_000, 5_000]
    slots = assign(costs, [1.0, 1.5])
    assert totals(costs, slots, 2) == [50_000, 75_000]
    assert counts(slots, 2) == [4, 4]


def test_w4_a_lone_item_goes_to_the_fastest() -> None:
    assert assign([7], [1.0, 2.5]) == [1]
    assert assign([7], [2.5, 1.0]) == [0]


def test_w5_a_hundred_equal_items_over_the_nine_given_weights() -> None:
    assert counts(assign([1] * 100, NINE), 9) == [8, 9, 12, 14, 10, 11, 23, 6, 7]


@pytest.mark.parametrize(("n", "makespan"), [(4, 20_000), (8, 16_667), (16, 16_667), (32, 16_250)])
def test_w6_more_items_come_nearer_to_balance(n: int, makespan: int) -> None:
    costs = [40_000 / n] * n
    loads = totals(costs, assign(costs, [1.0, 1.5]), 2)
    assert max(loads[0] / 1.0, loads[1] / 1.5) == pytest.approx(makespan, abs=0.5)


def test_w7_the_eighty_files_of_a_real_sample() -> None:
    assert counts(assign([10_000] * 79 + [4_577], [1.0, 1.5]), 2) == [32, 48]


def test_what_already_waits_counts() -> None:
    assert counts(assign([1] * 10, [1, 1], loads=[4, 0]), 2) == [3, 7]
    assert assign([1, 1], [1.0, 2.5], loads=[0, 100]) == [0, 0]


def test_nothing_to_assign_needs_no_slot() -> None:
    assert assign([], []) == assign([], [1.0]) == []


def naive(costs: Sequence[int], weights: Sequence[float], loads: Sequence[int]) -> list[int]:
    """The rule as it is written, without heaps."""
    waiting, slots = list(loads), [0] * len(costs)
    for item in sorted(range(len(costs)), key=lambda item: (-costs[item], item)):
        ends = [
            (load + costs[item]) / weight for load, weight in zip(waiting, weights, strict=True)
        ]
        slots[item] = ends.index(min(ends))
        waiting[slots[item]] += costs[item]
    return slots


@given(many_costs, some_weights, st.data())
def test_the_heaps_choose_as_the_rule_says(
    costs: list[int], weights: list[float], data: st.DataObject
) -> None:
    n = len(weights)
    loads = data.draw(st.lists(st.integers(0, 1000), min_size=n, max_size=n))
    assert assign(costs, weights, loads) == naive(costs, weights, loads)


@given(many_costs, some_weights)
def test_weighted_loads_are_within_one_item_of_each_other(
    costs: list[int], weights: list[float]
) -> None:
    slots = assign(costs, weights)
    loads = totals(costs, slots, len(weights))
    for item, slot in enumerate(slots):
        for other, weight in enumerate(weights):
            alone = (loads[other] + costs[item]) / weight
            smallest = min(cost for cost, s in zip(costs, slots, strict=True) if s == slot)
            if costs[item] == smallest:
                assert loads[slot] / weights[slot] <= alone * (1 + 1e-12)


@given(st.integers(1, 300), some_weights)
def test_equal_items_are_shared_in_proportion_to_weight(n: int, weights: list[float]) -> None:
    shares = counts(assign([1] * n, weights), len(weights))
    for share, weight in zip(shares, weights, strict=True):
        assert abs(share - n * weight / math.fsum(weights)) < len(weights) + 1


@given(many_costs, st.integers(1, 5), st.sampled_from(NINE))
def test_one_weight_for_all_is_as_good_as_none(costs: list[int], n: int, weight: float) -> None:
    assert assign(costs, [weight] * n) == assign(costs, [1.0] * n)


@pytest.mark.parametrize(
    ("costs", "weights", "loads", "message"),
    [
        ([1], [1.0, 0.0], None, "weights must be positive and finite, got 0.0"),
        ([1], [-1.0], None, "weights must be positive and finite, got -1.0"),
        ([], [math.nan], None, "weights must be positive and finite, got nan"),
        ([1], [math.inf], None, "weights must be positive and finite, got inf"),
        ([-1], [1.0], None, "costs and loads must be finite and not negative, got -1"),
        ([math.nan], [1.0], None, "costs and loads must be finite and not negative, got nan"),
        ([1], [1.0], [-2], "costs and loads must be finite and not negative, got -2"),
        ([1], [1.0], [0, 0], "Expected 1 loads, got 2"),
        ([1], [], None, "1 items and no slot to put them in"),
    ],
)
def test_what_cannot_be_assigned_is_refused(
    costs: list[float], weights: list[float], loads: list[float] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        assign(costs, weights, loads)


# ---- assign_files_weighted ----


def test_w1_a_3090_and_a_4090_get_twenty_and_thirty_files(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    files = [Path(f"output_{n}.fa") for n in range(50)]
    names = ["NVIDIA GeForce RTX 3090", "NVIDIA GeForce RTX 4090"]

    shares = assign_files_weighted(files, 2, [1.00, 1.50], cost=lambda _: 2500, names=names)

    assert [len(share) for share in shares] == [20, 30]
    assert sorted(shares[0] + shares[1]) == sorted(files)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "GPU 0 (RTX 3090, weight=1.00): 20 files, 50000 sequences"),
        ("INFO", "GPU 1 (RTX 4090, weight=1.50): 30 files, 75000 sequences"),
        ("INFO", "Sequences per unit of weight: 50000 to 50000 (0.0 %)"),
    ]


def test_w1_the_order_of_the_gpus_does_not_matter() -> None:
    shares = assign_files_weighted(range(50), 2, [1.5, 1.0], cost=lambda _: 2500)
    assert [len(share) for share in shares] == [30, 20]


def test_without_names_the_log_gives_the_weights_alone(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assign_files_weighted("ab", 1, cost=lambda _: 3)
    assert "GPU 0 (weight=1.00): 2 files, 6 sequences" in caplog.messages


def test_without_weights_it_is_bin_packing_largest_first() -> None:
    sizes = {"a": 5, "b": 9, "c": 5, "d": 1}
    assert assign_files_weighted(list("abcd"), 2, cost=sizes.__getitem__) == [
        ["b", "d"],
        ["a", "c"],
    ]


@given(many_costs, st.integers(1, 5))
def test_without_weights_all_workers_are_equal(costs: list[int], n: int) -> None:
    items = list(enumerate(costs))
    unweighted = assign_files_weighted(items, n, cost=lambda item: item[1])
    assert unweighted == assign_files_weighted(items, n, [1.0] * n, cost=lambda item: item[1])


@given(many_costs, some_weights)
def test_every_file_is_in_one_share_and_the_largest_come_first(
    costs: list[int], weights: list[float]
) -> None:
    items = list(enumerate(costs))
    shares = assign_files_weighted(items, len(weights), weights, cost=lambda item: item[1])
    assert sorted(item for share in shares for item in share) == items
    for share in shares:
        assert all((-a[1], a[0]) < (-b[1], b[0]) for a, b in pairwise(share))


def test_a_file_is_counted_once() -> None:
    counted = []
    assign_files_weighted("abc", 2, cost=lambda file: counted.append(file) or 1)
    assert counted == ["a", "b", "c"]


def test_no_files_and_fewer_files_than_workers_leave_empty_shares() -> None:
    assert assign_files_weighted([], 3, cost=len) == [[], [], []]
    assert assign_files_weighted(["x"], 3, cost=len) == [["x"], [], []]


def test_gpus_that_nobody_knows_share_equally() -> None:
    weights = [get_gpu_weight(name) for name in ("Wonder 1", "Wonder 2")]
    shares = assign_files_weighted(range(10), 2, weights, cost=lambda _: 1)
    assert shares == assign_files_weighted(range(10), 2, cost=lambda _: 1)


@pytest.mark.parametrize("n", [0, -1])
def test_there_must_be_a_worker(n: int) -> None:
    with pytest.raises(ValueError, match=f"^num_workers must be positive, got {n}$"):
        assign_files_weighted([], n, cost=len)


def test_there_must_be_a_weight_and_a_name_for_each_worker() -> None:
    with pytest.raises(ValueError, match="^Expected 2 weights, got 3$"):
        assign_files_weighted([], 2, [1, 1, 1], cost=len)
    with pytest.raises(ValueError, match="^Expected 2 names, got 1$"):
        assign_files_weighted([], 2, cost=len, names=["RTX 3090"])
