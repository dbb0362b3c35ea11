"""Which spool a worker chooses by its GPU, its array index, or neither."""

from __future__ import annotations

from pathlib import Path

import pytest

from fsqueue.errors import UsageError
from fsqueue.pool.settings import PoolDirectory, Spool, add_spool, create_pool
from fsqueue.worker.spool_choice import SpoolChoice, choose_spool
from tests.support.nvml.fake_driver import Driver, install
from tests.support.pools import ManualWorker

SPOOLS = (
    Spool("gpu0", "RTX 4090", 1.5),
    Spool("gpu1", "RTX 4090", 1.5),
    Spool("gpu2", "RTX 3090", 1.0),
    Spool("cpu0", "cpu", 0.05),
)


@pytest.fixture
def pool(tmp_path: Path) -> PoolDirectory:
    """A pool planned for two 4090, a 3090 and a CPU."""
    pool = create_pool(str(tmp_path / "pool"))
    for spool in SPOOLS:
        add_spool(pool, spool)
    return pool


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    """A host with a 3090, two 4090 and an H100, in this order."""
    driver = install(monkeypatch, tmp_path)
    cards = ("GeForce RTX 3090", "GeForce RTX 4090", "GeForce RTX 4090", "H100 80GB HBM3")
    for index, card in enumerate(cards):
        driver.add(index, f"NVIDIA {card}", f"GPU-{index}")
    return driver


def find(pool: PoolDirectory, devices: str | None = None, **environ: str) -> SpoolChoice:
    if devices is not None:
        environ["CUDA_VISIBLE_DEVICES"] = devices
    return choose_spool(pool, None, environ)


@pytest.mark.parametrize("devices", ["0", "GPU-0", "0,1"])
def test_the_model_of_the_gpu_decides_however_it_is_named(
    pool: PoolDirectory, driver: Driver, devices: str
) -> None:
    found = find(pool, devices)
    assert (found.spool, found.model, found.weight) == ("gpu2", "RTX 3090", 1.0)
    assert found.gpu == {"index": 0, "uuid": "GPU-0", "name": "NVIDIA GeForce RTX 3090"}


def test_workers_on_gpus_of_one_model_spread_over_its_spools(
    pool: PoolDirectory, driver: Driver
) -> None:
    found = []
    for devices in ("1", "2"):
        spool = find(pool, devices).spool
        ManualWorker(pool, spool).beat.flush()
        found.append(spool)
    assert sorted(found) == ["gpu0", "gpu1"]


def test_workers_on_one_gpu_share_its_spool_even_if_another_has_fewer_workers(
    pool: PoolDirectory, driver: Driver
) -> None:
    found = []
    for devices in ("1", "1", "2", "1", "2"):
        choice = find(pool, devices, FSQUEUE_PER_GPU="3")
        hand = ManualWorker(pool, choice.spool)
        hand.status.gpu = choice.gpu
        hand.beat.flush()
        found.append((devices, choice.spool))
    assert len(set(found)) == 2 and len({spool for _, spool in found}) == 2


def test_a_worker_that_shares_its_gpu_is_weighed_as_its_part(
    pool: PoolDirectory, driver: Driver
) -> None:
    found = find(pool, "0", FSQUEUE_PER_GPU="2")
    assert (found.spool, found.weight) == ("gpu2", 0.5)
    assert found.gpu == {
        "index": 0, "uuid": "GPU-0", "name": "NVIDIA GeForce RTX 3090", "workers": 2
    }  # fmt: skip
    assert find(pool, "", FSQUEUE_PER_GPU="2").weight == 0.05, "it has no GPU to share"
    with pytest.raises(UsageError, match="FSQUEUE_PER_GPU='many' is not a number of workers"):
        find(pool, "0", FSQUEUE_PER_GPU="many")


def test_the_instances_of_a_card_begin_with_different_spools(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have one index, and all start at once."""
    driver = install(monkeypatch, tmp_path)
    driver.add(0, "NVIDIA A100-SXM4-40GB", "GPU-parent", gib=40)
    driver.set(0, mig=1)
    for place in range(2):
        driver.add(f"0/{place}", "NVIDIA A100-SXM4-40GB MIG 3g.20gb", f"MIG-{place}", gib=20)
    pool = create_pool(str(tmp_path / "pool"))
    for name in ("gpu0", "gpu1"):
        add_spool(pool, Spool(name, "A100 MIG 3g.20gb", 0.51))
    assert {find(pool, f"MIG-{place}").spool for place in range(2)} == {"gpu0", "gpu1"}


def test_gpus_that_start_together_do_not_all_begin_with_one_spool(
    pool: PoolDirectory, driver: Driver
) -> None:
    """No worker has a status yet, so only the index distinguishes them."""
    assert {find(pool, "1").spool, find(pool, "2").spool} == {"gpu0", "gpu1"}


def test_a_gpu_without_a_spool_joins_as_a_thief(pool: PoolDirectory, driver: Driver) -> None:
    found = find(pool, "3")
    assert (found.spool, found.model, found.weight) == (None, "H100", 2.5)


@pytest.mark.parametrize("devices", ["", "-1"])
def test_a_worker_that_sees_no_gpu_works_a_cpus_spool(
    pool: PoolDirectory, driver: Driver, devices: str
) -> None:
    found = find(pool, devices)
    assert (found.spool, found.model, found.gpu) == ("cpu0", "cpu", {})


def test_a_cpu_without_a_spool_joins_as_a_thief(tmp_path: Path, driver: Driver) -> None:
    pool = create_pool(str(tmp_path / "gpus"))
    add_spool(pool, SPOOLS[0])
    assert find(pool, "").spool is None


def test_a_spool_can_be_named(pool: PoolDirectory, driver: Driver) -> None:
    assert choose_spool(pool, "gpu0", {"CUDA_VISIBLE_DEVICES": "0"}).spool == "gpu0"
    with pytest.raises(UsageError, match="has no spool 'gpu9'; it has: cpu0, gpu0, gpu1, gpu2"):
        choose_spool(pool, "gpu9", {})


@pytest.mark.parametrize(
    "index, spool",
    [("1", "gpu0"), ("2", "gpu1"), ("6", "gpu1"), ("3", None), ("x", None), ("-1", None)],
)
def test_in_an_array_the_index_chooses_among_the_spools_of_the_model(
    pool: PoolDirectory, driver: Driver, index: str, spool: str | None
) -> None:
    """By place: cpu0, gpu0, gpu1, gpu2. The index of another model's spool does not count."""
    for wanted in ("gpu0", "gpu1"):
        if spool is None:
            ManualWorker(pool, wanted).beat.flush()
    found = find(pool, "2", SLURM_ARRAY_TASK_ID=index)
    assert found.model == "RTX 4090"
    assert found.spool in ({spool} if spool else {"gpu0", "gpu1"})


def test_in_an_array_a_model_without_a_spool_starts_at_its_index(
    pool: PoolDirectory, driver: Driver
) -> None:
    found = find(pool, "3", SLURM_ARRAY_TASK_ID="7")
    assert (found.spool, found.model) == ("gpu2", "H100")
