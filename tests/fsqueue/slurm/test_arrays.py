"""Which arrays of workers a pool needs on which cluster, without a real SLURM."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsqueue.errors import UsageError
from fsqueue.pool.settings import Spool
from fsqueue.scheduling.gpu_spec import parse_gpus
from fsqueue.slurm.arrays import (
    Array,
    Cluster,
    PlannedWorker,
    arrays_for,
    gres_for,
    index_text,
    parse_array_max,
    parse_gpu_types,
    workers_for,
)

MIXED = [Spool("gpu0", "RTX 4090", 1.5), Spool("gpu1", "RTX 3090", 1.0),
         Spool("gpu2", "RTX 4090", 1.5)]  # fmt: skip
HERE = Cluster(1001, frozenset({"rtx4090", "rtx3090"}))


@pytest.mark.parametrize(
    "nodes, types",
    [
        ("gpu:rtx4090:2\ngpu:rtx3090:1(S:0-1)\n", {"rtx4090", "rtx3090"}),
        ("gpu:rtx4090:1,gpu:rtx3090:1\n(null)\n", {"rtx4090", "rtx3090"}),
        ("gpu:2080ti:4(S:0,2)\n", {"2080ti"}),
        ("gpu:4\n", {""}),
        ("gpu\n", {""}),
        ("shard:a100:40,craynetwork:4,gpu:a100:4\n", {"a100"}),
        ("(null)\n", set()),
        ("", set()),
    ],
)
def test_gpu_types_are_parsed_from_sinfo(nodes: str, types: set[str]) -> None:
    assert parse_gpu_types(nodes) == types


@given(st.text())
def test_any_output_of_sinfo_can_be_parsed(text: str) -> None:
    assert parse_gpu_types(text) is not None


@pytest.mark.parametrize(
    "config, longest",
    [("KillWait   = 30 sec\nMaxArraySize            = 16\n", 16), ("", 1001), ("nonsense", 1001)],
)
def test_the_longest_array_is_read_off_scontrol(config: str, longest: int) -> None:
    assert parse_array_max(config) == longest


@pytest.mark.parametrize(
    "model, types, gres",
    [
        ("RTX 4090", {"rtx4090", "rtx3090"}, "gpu:rtx4090:1"),
        ("RTX 4090", {"nvidia_geforce_rtx_4090"}, "gpu:nvidia_geforce_rtx_4090:1"),
        ("A100", {"a100-sxm4-80gb"}, "gpu:a100-sxm4-80gb:1"),
        ("A100", {"a100_80gb", "v100"}, "gpu:a100_80gb:1"),
        ("V100 16GB", {"v100"}, "gpu:v100:1"),
        ("RTX 4090", {""}, "gpu:1"),
        ("RTX 4090", {"", "a100"}, None),
        ("RTX 4090", {"rtx3090"}, None),
        ("RTX 4090", set(), None),
        ("cpu", {"rtx3090"}, ""),
        ("cpu", set(), ""),
    ],
)
def test_a_model_is_asked_for_by_the_name_that_this_cluster_has_for_it(
    model: str, types: set[str], gres: str | None
) -> None:
    assert gres_for(model, Cluster(1001, frozenset(types))) == gres


def test_on_an_unknown_cluster_the_usual_gres_is_requested() -> None:
    assert gres_for("RTX 4090", Cluster()) == "gpu:rtx4090:1"


def test_by_default_every_spool_gets_a_worker() -> None:
    assert workers_for(MIXED) == [
        PlannedWorker("RTX 4090", 0),
        PlannedWorker("RTX 3090", 1),
        PlannedWorker("RTX 4090", 2),
    ]


def test_so_many_workers_are_shared_out_over_the_spools_in_turn() -> None:
    assert [worker.spool_position for worker in workers_for(MIXED, count=5)] == [0, 1, 2, 0, 1]
    assert [worker.spool_position for worker in workers_for(MIXED, count=1)] == [0]


def test_workers_on_named_gpus_begin_with_spools_of_their_model() -> None:
    workers = workers_for(MIXED, specs=parse_gpus("4090x3,3090x2"))
    assert [worker.spool_position for worker in workers] == [0, 2, 0, 1, 1]


def test_workers_on_an_unplanned_model_begin_anywhere() -> None:
    workers = workers_for(MIXED, specs=parse_gpus("h100x4"))
    assert [(worker.model, worker.spool_position) for worker in workers] == [
        ("H100", p) for p in (0, 1, 2, 0)
    ]


def test_a_pool_that_was_never_planned_has_no_arrays() -> None:
    with pytest.raises(UsageError, match="has no spools"):
        workers_for([])


def test_each_model_has_its_own_array_with_the_indices_of_its_spools() -> None:
    arrays, absent = arrays_for(workers_for(MIXED, count=7), 3, HERE)
    assert absent == []
    assert arrays == [
        Array("RTX 4090", "gpu:rtx4090:1", (0, 2, 3, 5, 6)),
        Array("RTX 3090", "gpu:rtx3090:1", (1, 4)),
    ]


def test_a_model_that_the_cluster_lacks_is_named() -> None:
    workers = [*workers_for(MIXED), PlannedWorker("H100", 0)]
    arrays, absent = arrays_for(workers, 3, HERE)
    assert absent == ["H100"]
    assert len(arrays) == 2


@given(
    positions=st.lists(st.integers(0, 6), min_size=1, max_size=60),
    limit=st.integers(7, 30),
)
def test_every_index_means_its_spool_is_below_the_limit_and_is_there_once(
    positions: list[int], limit: int
) -> None:
    arrays, _ = arrays_for(
        [PlannedWorker("cpu", position) for position in positions], 7, Cluster(limit)
    )
    found = [index for array in arrays for index in array.indices]
    assert sorted(index % 7 for index in found) == sorted(positions)
    assert max(found) < limit
    for array in arrays:
        assert list(array.indices) == sorted(set(array.indices))


def test_more_spools_than_an_array_has_indices_are_refused() -> None:
    with pytest.raises(UsageError, match="MaxArraySize"):
        arrays_for([PlannedWorker("cpu", 0)], 17, Cluster(16))


@pytest.mark.parametrize(
    "indices, text",
    [
        ((0,), "0"),
        ((0, 1), "0-1"),
        ((0, 1, 2, 3), "0-3"),
        ((1, 3, 5, 7), "1-7:2"),
        ((0, 2), "0,2"),
        ((0, 2, 3, 5, 6), "0,2-3,5-6"),
    ],
)
def test_indices_are_written_short(indices: tuple[int, ...], text: str) -> None:
    assert index_text(indices) == text


@given(st.sets(st.integers(0, 50), min_size=1).map(sorted))
def test_indices_mean_what_they_meant(indices: list[int]) -> None:
    found: list[int] = []
    for part in index_text(indices).split(","):
        ends, _, step = part.partition(":")
        first, _, last = ends.partition("-")
        found += range(int(first), int(last or first) + 1, int(step or 1))
    assert found == indices
