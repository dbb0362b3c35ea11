"""Two models in one pool: workers share them out, and load each no more often than they must.

The planner, the policy and the workers' own steps are the real ones; what a model is, is a word.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from fsqueue.handler import Handler, Item, Source, Work
from fsqueue.pool.settings import PoolDirectory, create_pool
from fsqueue.scheduling.planner import plan_into
from fsqueue.worker.settings import WorkerSettings
from fsqueue.worker.worker import Worker
from tests.support.pools import request, state_counts


class Models(Handler):
    """Each input `a.30.x` is a claim of kind x, for which the model x must be loaded."""

    name = "models"
    suffix = ".txt"

    def __init__(self) -> None:
        self.has: list[str] = []
        self.loads = 0

    def survey(self, path: str, options: Mapping[str, Any]) -> Source:
        stem, cost, kind = Path(path).name.split(".")
        return Source(path, path, int(cost), {}, detail=(stem, kind))

    def cut(
        self, sources: Sequence[Source], options: Mapping[str, Any], cost_max: int
    ) -> Iterator[Item]:
        for source in sources:
            stem, kind = source.detail
            yield Item(stem, kind, source.cost, {"key": source.key}, {})

    def run(self, work: Work) -> None:
        if work.kind not in self.has:
            self.loads += 1
            self.has = [*self.has, work.kind][-(self.models_max or 9) :]
        work.output.write_text(work.id)

    def loaded(self) -> list[str]:
        return self.has


def pool_of(root: Path, count: int = 12, sizes: Sequence[int] = (50, 40)) -> PoolDirectory:
    """Plan `count` claims of each of two models into two spools, so that each has both."""
    pool = create_pool(str(root))
    for kind, size in zip("xy", sizes, strict=True):
        words = [f"{kind}{n}.{size}.{kind}" for n in range(count)]
        plan_into(pool, request(*words, weights=(1.0, 1.0), handler=Models()))
    for spool in ("gpu0", "gpu1"):
        kinds = {path.name.split(".")[1] for path in Path(pool.spool(spool)).iterdir()}
        assert kinds == {"x", "y"}
    return pool


def join(pool: PoolDirectory, *specials: str, models_max: int | None = None) -> list[Worker]:
    """Return two workers that have joined, one on each spool."""
    workers = []
    for index in range(2):
        special = frozenset(specials[index : index + 1])
        settings = WorkerSettings(
            spool=f"gpu{index}", specialization=special, models_max=models_max
        )
        worker = Worker(pool, settings)
        worker.handler_cache.handlers["models"] = handler = Models()
        handler.models_max = models_max
        worker.lease.enlist()
        Path(pool.scratch(worker.id)).mkdir()
        worker.beat.flush()
        workers.append(worker)
    return workers


def work_off(pool: PoolDirectory, workers: list[Worker]) -> list[int]:
    """Let the workers take turns; return how often each loaded a model."""
    rounds = 0
    while state_counts(pool).keys() - {"done"}:
        rounds += 1
        assert rounds < 400, state_counts(pool)
        for worker in workers:
            found = worker.claim_source.next()
            if found is not None:
                assert worker._run(*found) is None
            worker.beat.flush()
            worker.claim_source._others_listed_at = -1e9  # as if a poll had passed
    return [_models(worker).loads for worker in workers]


def _models(worker: Worker) -> Models:
    handler = worker.handler_cache.handlers["models"]
    assert isinstance(handler, Models)
    return handler


def events(pool: PoolDirectory, event: str) -> list[dict[str, Any]]:
    found = []
    for path in Path(pool.directory("events")).glob("*.jsonl"):
        found += [json.loads(line) for line in path.read_text().splitlines()]
    return [each for each in found if each["event"] == event]


@pytest.mark.parametrize("sizes", [(50, 40), (50, 5), (5, 50)], ids="alike x-heavy y-heavy".split())
def test_each_model_is_loaded_once_a_worker_and_the_loads_are_near_the_minimum(
    tmp_path: Path, sizes: tuple[int, int]
) -> None:
    pool = pool_of(tmp_path / "pool", sizes=sizes)
    loads = work_off(pool, join(pool))
    assert sum(loads) <= 2 + 1, loads
    assert len(events(pool, "loaded")) == sum(loads)
    assert not events(pool, "evicted")


def test_with_specialisation_the_loads_are_the_minimum(tmp_path: Path) -> None:
    pool = pool_of(tmp_path / "pool")
    loads = work_off(pool, join(pool, "y", "x"))
    assert loads == [1, 1]
    loaded = {(each["worker"], each["kind"]) for each in events(pool, "loaded")}
    assert len(loaded) == 2


def test_room_for_one_model_does_not_make_it_go_to_and_fro(tmp_path: Path) -> None:
    pool = pool_of(tmp_path / "pool")
    loads = work_off(pool, join(pool, models_max=1))
    assert sum(loads) <= 2 + 1, loads
    assert len(events(pool, "evicted")) <= 1


def test_a_claim_is_not_left_undone_for_an_idle_worker_that_never_comes(tmp_path: Path) -> None:
    pool = pool_of(tmp_path / "pool", count=3)
    mine, hung = join(pool)
    mine.status.rates = {"x": 100.0}
    hung.status.loaded = ["x", "y"]
    hung.beat.flush()
    rounds = 0
    while "spools" in state_counts(pool):
        rounds += 1
        assert rounds < 60, state_counts(pool)
        if (found := mine.claim_source.next()) is not None:
            assert mine._run(*found) is None
        mine.claim_source._others_listed_at = -1e9
    assert state_counts(pool) == {"done": 6}
