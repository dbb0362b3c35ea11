"""Scores by worked examples, S-1 to S-9, and what must never decide one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fsqueue.scheduling.score import (
    JITTER_MAX,
    Candidate,
    Need,
    canonical_model,
    detect_required_model,
    explain,
    fits,
    jitter,
    rank,
    score,
    select_best_worker,
)
from tests.support.processes import fsqueue

HEARTBEAT: dict[str, Any] = {
    "worker_id": "gpu-worker-abc123",
    "status": "healthy",
    "tier": 1,
    "current_load": 0.42,
    "available_memory": "24.5GB",
    "gpu_utilization": 65.3,
    "active_requests": 2,
    "loaded_models": ["llama3.2", "nomic-embed-text"],
    "specialization": "vllm",
    "services_status": {"vllm": "healthy", "embeddings": "healthy"},
}
LISTED: dict[str, Any] = {
    "id": "gpu-worker-1",
    "tier": 1,
    "specialization": "vllm",
    "loaded_models": ["llama3.2", "nomic-embed-text"],
    "active_requests": 2,
    "cpu_load": 0.45,
    "gpu_util": 72.5,
}


def worker(id: str = "w", tier: int = 1, **facts: Any) -> Candidate:
    return Candidate.read({"worker_id": id, "tier": tier} | facts)


def test_s1_the_specialist_with_the_model_wins_by_far() -> None:
    need = Need("ocr", "llama-vision")
    first = worker("1", loaded_models=["llama-vision"], specialization="ocr", current_load=0.2)
    second = worker("2", loaded_models=["llama3.2"], current_load=0.15, active_requests=2)
    assert score(first, need) == pytest.approx(174.0)
    assert score(second, need) == pytest.approx(15.5)
    assert select_best_worker([second, first], "ocr") is first


def test_s2_of_two_that_have_the_model_the_less_busy_wins() -> None:
    need = Need("chat", "llama3.2")
    loaded = {"loaded_models": ["llama3.2"]}
    first = worker("1", **loaded, current_load=0.9, active_requests=5)
    second = worker("2", **loaded, current_load=0.3, active_requests=1)
    assert score(first, need) == pytest.approx(78.0)
    assert score(second, need) == pytest.approx(116.0)
    assert select_best_worker([first, second], "chat", "llama3.2") is second


def test_s3_utilisation_comes_in_percent_and_counts_as_a_fraction() -> None:
    assert score(Candidate.read(HEARTBEAT), Need("vllm", "llama3.2")) == pytest.approx(154.34)


def test_s4_a_row_of_the_workers_listing_is_scored_like_a_heartbeat() -> None:
    assert score(Candidate.read(LISTED), Need("vllm", "llama3.2")) == pytest.approx(142.0)


@pytest.mark.parametrize(("active", "winner"), [(19, "warm"), (21, "cold")])
def test_s5_a_loaded_model_is_worth_twenty_running_claims(active: int, winner: str) -> None:
    warm = worker("warm", loaded_models=["m"], active_requests=active)
    best = select_best_worker([worker("cold"), warm], "s", "m")
    assert best is not None and best.worker_id == winner


def test_s5_with_twenty_they_are_equal() -> None:
    need = Need("s", "m")
    warm = worker("warm", loaded_models=["m"], active_requests=20)
    assert score(warm, need) == score(worker("cold"), need) == 30.0


def test_s6_a_busy_gpu_is_worse_than_an_idle_cpu() -> None:
    need = Need("s")
    assert [score(worker(tier=tier), need) for tier in (1, 2, 3)] == [30.0, 20.0, 10.0]
    busy = worker("busy", current_load=1.0, gpu_utilization=100.0)
    assert score(busy, need) == -20.0
    best = select_best_worker([busy, worker("idle", tier=2)], "s")
    assert best is not None and best.worker_id == "idle"


def test_s7_the_most_is_190_and_loads_beyond_1_count_as_1() -> None:
    best = {"loaded_models": ["m"], "specialization": "s", "services_status": {"s": "healthy"}}
    assert score(worker(**best), Need("s", "m")) == 190.0
    assert score(worker(current_load=7.5), Need("s")) == 0.0


def test_s8_gpu_use_counts_for_gpu_workers_alone_and_unknown_use_not_at_all() -> None:
    assert score(worker(tier=2, gpu_utilization=90.0), Need("s")) == 20.0
    assert score(worker(tier=3, gpu_utilization=90.0), Need("s")) == 10.0
    assert score(worker(gpu_utilization=None), Need("s")) == 30.0


@pytest.mark.parametrize(("special", "service"), [("vllm", "vll"), ("vll", "vllm"), ("vllm", "")])
def test_s8_specialisation_matches_whole_names_only(special: str, service: str) -> None:
    assert score(worker(specialization=special), Need(service)) == 30.0


def test_s8_specialisation_may_be_a_list_and_ignores_case() -> None:
    assert score(worker(specialization="dnabert-s, ESM2"), Need("esm2")) == 80.0
    assert score(worker(specialization=["ESM2"]), Need("Esm2")) == 80.0


def test_s8_what_is_not_reported_counts_nothing_and_nobody_is_none() -> None:
    assert score(Candidate.read({}), Need("s", "m")) == 0.0
    assert score(Candidate.read({"tier": "one", "current_load": "high"}), Need("s")) == 0.0
    assert select_best_worker([], "vllm") is None


def test_s8_a_model_nobody_has_gives_points_to_nobody() -> None:
    workers = [worker("a", loaded_models=["m"]), worker("b", loaded_models=[])]
    assert [score(w, Need("s", "unheard-of")) for w in workers] == [30.0, 30.0]


def test_s9_tags_and_aliases_of_one_model_are_equal() -> None:
    assert canonical_model("llama3.2:latest") == canonical_model("Llama3.2") == "llama3.2"
    assert canonical_model("nomic-embed") == canonical_model("nomic-embed-text")
    assert canonical_model("llama3.2-vision") != canonical_model("llama-vision")
    assert canonical_model("llama3.2:1b") != canonical_model("llama3.2")
    assert score(worker(loaded_models=["llama3.2:latest"]), Need("s", "llama3.2")) == 130.0


def test_equals_are_told_apart_the_same_way_everywhere_but_not_always_for_one() -> None:
    workers = [worker(f"w{index}") for index in range(8)]
    winners = set()
    for service in map(str, range(40)):
        best = select_best_worker(workers, service)
        assert best and best == select_best_worker(list(reversed(workers)), service)
        winners.add(best.worker_id)
    assert len(winners) > 3
    assert all(0 <= jitter(w, Need("s")) < JITTER_MAX for w in workers)


def test_jitter_never_outweighs_a_real_difference() -> None:
    close = [worker("a", current_load=0.001), worker("b")]
    for service in map(str, range(40)):
        best = select_best_worker(close, service)
        assert best is not None and best.worker_id == "b"


def test_the_terms_of_an_explanation_add_up_to_the_score() -> None:
    need = Need("vllm", "llama3.2")
    terms = explain(Candidate.read(HEARTBEAT), need)
    assert sum(term.points for term in terms) == pytest.approx(154.34)
    assert {term.term: term.points for term in terms} == pytest.approx(
        {
            "model": 100,
            "specialisation": 50,
            "tier": 30,
            "health": 10,
            "cpu load": -12.6,
            "running": -10,
            "gpu use": -13.06,
        }
    )


def test_lower_tiers_do_not_get_higher_work_but_higher_ones_get_lower() -> None:
    assert fits(worker(tier=3), Need("s", tier_max=2))
    assert not fits(worker(tier=1), Need("s", tier_max=2))
    workers = [worker("gpu", tier=1), worker("store", tier=3)]
    assert [w.worker_id for w, _ in rank(workers, Need("s", tier_max=2))] == ["gpu"]


def test_only_the_capable_and_the_healthy_are_ranked() -> None:
    workers = [
        worker("a", capabilities=["embeddings"]),
        worker("b"),
        worker("c", capabilities=["Embeddings"], status="unhealthy"),
    ]
    assert [w.worker_id for w, _ in rank(workers, Need("s", capability="embeddings"))] == ["a"]


@pytest.mark.parametrize(
    ("of", "model"),
    [
        ({"model": "llama3.2:latest", "service": "ocr"}, "llama3.2"),
        ("vllm/generate", "llama3.2"),
        ("ocr/process", "llama-vision"),
        ("embeddings", "nomic-embed-text"),
        ({"service": "dnabert"}, "dnabert-s"),
        ("esm", "esm2-3b"),
        ("storage", None),
        ("", None),
        ({}, None),
    ],
)
def test_the_required_model_is_named_or_follows_from_a_whole_word(
    of: str | dict[str, str], model: str | None
) -> None:
    assert detect_required_model(of) == model


# ---- fsqueue explain --workers FILE --need JSON ----


@pytest.mark.slow
def test_explain_prints_every_term_for_workers_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "workers.json"
    path.write_text(json.dumps({"workers": [LISTED, HEARTBEAT]}))
    need = json.dumps({"service": "vllm", "model": "llama3.2"})
    done = fsqueue("explain", "--workers", path, "--need", need, "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["best"] == "gpu-worker-abc123"
    assert [row["score"] for row in answer["workers"]] == pytest.approx([154.34, 142.0])
    for row in answer["workers"]:
        assert sum(term["points"] for term in row["terms"]) == pytest.approx(row["score"])
    text = fsqueue("explain", "--workers", path, "--need", need)
    assert "154.34" in text.stdout and "gpu-worker-abc123" in text.stdout


@pytest.mark.slow
def test_explain_says_who_was_left_out_and_fails_if_that_is_everybody(tmp_path: Path) -> None:
    path = tmp_path / "workers.json"
    path.write_text(json.dumps([{"worker_id": "s", "tier": 3}]))
    done = fsqueue("explain", "--workers", path, "--need", '{"min_tier": 2}', "--json")
    assert json.loads(done.stdout)["best"] is None
    assert "tier" in json.loads(done.stdout)["left_out"][0]["why"]
    assert done.returncode == 5


@pytest.mark.slow
@pytest.mark.parametrize("need", ["nonsense", "[1]"])
def test_explain_refuses_a_need_that_is_no_json_object(tmp_path: Path, need: str) -> None:
    path = tmp_path / "workers.json"
    path.write_text("[]")
    done = fsqueue("explain", "--workers", path, "--need", need)
    assert done.returncode == 2 and "JSON" in done.stderr
