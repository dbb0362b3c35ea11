"""What workers say of themselves in the shapes that a load balancer's clients read."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from fsqueue.pool.settings import PoolDirectory
from fsqueue.records.status import Current, read_status, write_status
from tests.support.planning import make_inputs, plan_command
from tests.support.pools import ManualWorker, make_pool
from tests.support.processes import Start, fsqueue, wait_for

SEVEN = "id tier specialization loaded_models active_requests cpu_load gpu_util".split()


@pytest.fixture
def pool(tmp_path: Path) -> PoolDirectory:
    return make_pool(tmp_path / "pool", "a.30", "b.20")


def joined(pool: PoolDirectory, **facts: Any) -> ManualWorker:
    hand = ManualWorker(pool, "gpu0")
    for name, value in facts.items():
        setattr(hand.status, name, value)
    write_status(pool, hand.status)
    return hand


@pytest.mark.slow
def test_workers_come_with_the_seven_keys_first(pool: PoolDirectory) -> None:
    hand = joined(
        pool,
        tier=1,
        specialization="vllm",
        loaded=["llama3.2"],
        gpu={"compute_percent": 72.5},
        state="idle",
    )
    hand.take()
    rows = json.loads(fsqueue("workers", pool.root, "--json").stdout)["workers"]
    assert list(rows[0])[:7] == SEVEN
    assert [rows[0][key] for key in SEVEN if key != "cpu_load"] == [
        hand.id, 1, "vllm", ["llama3.2"], 1, 72.5,
    ]  # fmt: skip
    assert 0.0 <= rows[0]["cpu_load"] <= 1.0


@pytest.mark.slow
def test_services_count_the_workers_that_offer_them(pool: PoolDirectory) -> None:
    one = joined(pool, capabilities=["embed", "embeddings"])
    two = joined(pool, capabilities=["embed"])
    gone = joined(pool, capabilities=["embed", "rare"])
    gone.leave()
    shown = json.loads(fsqueue("services", pool.root, "--json").stdout)
    assert shown == {
        "services": [
            {"name": "embed", "worker_count": 2, "workers": sorted([one.id, two.id])},
            {"name": "embeddings", "worker_count": 1, "workers": [one.id]},
        ]
    }
    assert "embeddings" in fsqueue("services", pool.root).stdout


def test_a_status_file_is_a_heartbeat_of_the_guide_too(pool: PoolDirectory) -> None:
    hand = joined(pool, tier=1, gpu={"compute_percent": 65.3}, loaded=["m"], specialization="a")
    hand.status.current = Current("x", "k", 1, 0, "gpu0", 0.0)
    hand.status.services_status = {"embed": "healthy"}
    write_status(pool, hand.status)
    facts = json.loads(Path(pool.status(hand.id)).read_bytes())
    assert facts["worker_id"] == hand.id and facts["status"] == "healthy"
    assert 0.0 <= facts["current_load"] <= 1.0
    assert re.fullmatch(r"[0-9]+\.[0-9]GB", facts["available_memory"])
    assert facts["available_memory_bytes"] > 1 << 20
    assert facts["gpu_utilization"] == 65.3 and facts["active_requests"] == 1
    assert facts["loaded_models"] == ["m"] and facts["specialization"] == "a"
    assert facts["services_status"] == {"embed": "healthy"}


def test_whose_service_failed_last_is_degraded(pool: PoolDirectory) -> None:
    hand = joined(pool, services_status={"embed": "unhealthy", "command": "healthy"})
    facts = json.loads(Path(pool.status(hand.id)).read_bytes())
    assert facts["status"] == "degraded"


@pytest.mark.slow
def test_a_worker_says_what_it_was_told_to_be(start: Start, tmp_path: Path) -> None:
    pool = plan_command(tmp_path / "pool", make_inputs(tmp_path / "in", 1), ("cat", "{input}"))
    words = ("--keep-alive", "--role", "storage", "--capability", "Disk", "--steal-interval", "0.2")
    worker = start("work", pool.root, *words, env={"WORKER_SPECIALIZATION": "esm2, Merge"})
    id = worker.worker_in(pool)
    status = wait_for(lambda: read_status(pool, id), "its status")
    assert (status.tier, status.specialization) == (3, "esm2,merge")
    assert {"disk", "command", "embed"} <= set(status.capabilities)
    row = json.loads(fsqueue("workers", pool.root, "--json").stdout)["workers"][0]
    assert (row["tier"], row["active_requests"]) == (3, 0)
