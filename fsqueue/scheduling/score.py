"""Score workers for a need: which worker should get work that can be addressed.

In a pool, workers choose their claims (`choose`). Scores are for the opposite direction:
broadcasts, claims that are added to a live pool, and `fsqueue explain --need`.

    score = 100 model loaded + 50 specialised + 10 service healthy
            + 30, 20 or 10 for tier GPU, CPU or storage
            - 30 x CPU load - 5 x running claims - 20 x GPU utilisation (tier 1 alone)

Loads and utilisation enter as fractions. What a worker does not report counts 0. Names are compared
whole, never by substring. Equal scores, and only those, are ordered by a jitter of less than 5
points that depends on worker and need alone: the same question has the same answer everywhere, and
different needs do not all go to the same one of several equals.

Nothing here reads a pool. Which models have other names is up to installed packages.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Final

from fsqueue.pool.requirements import Tier
from fsqueue.records.status import Health

MODEL_LOADED: Final = 100.0
SPECIALISED: Final = 50.0
HEALTHY: Final = 10.0
TIERS: Final = {Tier.GPU: 30.0, Tier.CPU: 20.0, Tier.STORAGE: 10.0}
CPU_LOAD: Final = -30.0
RUNNING: Final = -5.0
GPU_USE: Final = -20.0
JITTER_MAX: Final = 5.0
EQUAL_WITHIN: Final = 1e-9

MODELS: Final = "fsqueue.models"
"""Entry points of functions that return what scores need to know about models: `aliases`, by other
name, and `by_service`, by a word in a service's path."""
UNFIT: Final = frozenset({Health.UNHEALTHY, Health.LOST, "offline"})


@dataclass(frozen=True, slots=True)
class Candidate:
    """A worker as the score sees it; `gpu_percent` is None where it is not known."""

    worker_id: str
    tier: int = 0
    loaded: frozenset[str] = frozenset()
    specialization: frozenset[str] = frozenset()
    load: float = 0.0
    running: int = 0
    gpu_percent: float | None = None
    services: Mapping[str, str] = field(default_factory=dict)
    capabilities: frozenset[str] = frozenset()
    health: str = Health.HEALTHY

    @classmethod
    def read(cls, facts: Mapping[str, Any]) -> Candidate:
        """Read a heartbeat, or a row of `fsqueue workers --json`."""
        services = facts.get("services_status")
        services = services if isinstance(services, Mapping) else {}
        return cls(
            worker_id=str(facts.get("worker_id") or facts.get("id") or ""),
            tier=int(_number(facts.get("tier"))),
            loaded=frozenset(map(canonical_model, _words(facts.get("loaded_models")))),
            specialization=_lower(facts.get("specialization")),
            load=_number(facts.get("current_load", facts.get("cpu_load"))),
            running=int(_number(facts.get("active_requests"))),
            gpu_percent=_percent(facts.get("gpu_utilization", facts.get("gpu_util"))),
            services={str(name).lower(): str(state).lower() for name, state in services.items()},
            capabilities=_lower(facts.get("capabilities")),
            health=str(facts.get("status") or Health.HEALTHY).lower(),
        )


@dataclass(frozen=True, slots=True)
class Need:
    """What a piece of work needs. `tier_max` 2 means GPU and CPU workers."""

    service: str = ""
    model: str | None = None
    capability: str | None = None
    tier_max: int = Tier.STORAGE

    @classmethod
    def read(cls, facts: Mapping[str, Any]) -> Need:
        """Read a need from JSON: service, model, required_capability, min_tier."""
        return cls(
            service=str(facts.get("service") or ""),
            model=detect_required_model(facts),
            capability=facts.get("required_capability") or None,
            tier_max=int(_number(facts.get("min_tier")) or Tier.STORAGE),
        )


@dataclass(frozen=True, slots=True)
class Term:
    """One term of a score, and its reason."""

    term: str
    points: float
    why: str


def explain(worker: Candidate, need: Need) -> list[Term]:
    """Return every term of a score, including those of 0 points."""
    service, model = need.service.lower(), need.model and canonical_model(need.model)
    has = model is not None and model in worker.loaded
    special = bool(service) and service in worker.specialization
    health = worker.services.get(service, "unknown")
    tier = next((tier for tier in TIERS if tier == worker.tier), None)
    load = min(max(worker.load, 0.0), 1.0)
    on_gpu = worker.tier == Tier.GPU and worker.gpu_percent is not None
    use = min(max(worker.gpu_percent or 0.0, 0.0), 100.0) / 100 if on_gpu else 0.0
    wanted = f"{model} {'is' if has else 'is not'} loaded" if model else "no model is needed"
    of = ", ".join(sorted(worker.specialization)) or "nothing"
    return [
        Term("model", MODEL_LOADED * has, wanted),
        Term("specialisation", SPECIALISED * special, f"specialised in {of}"),
        Term("tier", TIERS[tier] if tier else 0.0, tier.name if tier else f"tier {worker.tier}"),
        Term("health", HEALTHY * (health == Health.HEALTHY), f"{service or 'service'} is {health}"),
        Term("cpu load", CPU_LOAD * load, f"{CPU_LOAD:g} x {load:.2f}"),
        Term("running", RUNNING * worker.running, f"{RUNNING:g} x {worker.running}"),
        Term("gpu use", GPU_USE * use, f"{GPU_USE:g} x {use:.3f}" if on_gpu else "not counted"),
    ]


def score(worker: Candidate, need: Need) -> float:
    """Return how well a worker suits a need: more is better; at most 190."""
    return math.fsum(term.points for term in explain(worker, need))


def fits(worker: Candidate, need: Need) -> str:
    """Return why a worker may not have the work at all, "" if it may."""
    if worker.health in UNFIT:
        return f"it is {worker.health}"
    if worker.tier > need.tier_max:
        return f"its tier is {worker.tier}, and this needs tier {int(need.tier_max)} or better"
    if need.capability and need.capability.lower() not in worker.capabilities:
        return f"it lacks the capability {need.capability!r}"
    return ""


def rank(workers: Iterable[Candidate], need: Need) -> list[tuple[Candidate, float]]:
    """Return the workers that qualify with their scores, best first."""
    scored = [(worker, score(worker, need)) for worker in workers if not fits(worker, need)]
    scored.sort(key=lambda pair: -pair[1])
    ranked: list[tuple[Candidate, float]] = []
    while scored:
        equals = [pair for pair in scored if scored[0][1] - pair[1] <= EQUAL_WITHIN]
        ranked += sorted(equals, key=lambda pair: (-jitter(pair[0], need), pair[0].worker_id))
        scored = scored[len(equals) :]
    return ranked


def select_best_worker(
    workers: Sequence[Candidate], service: str, model: str | None = None
) -> Candidate | None:
    """Return the worker with the highest score, or None if none qualifies.

    Without `model`, it is inferred from the service's path, if that is possible.
    """
    need = Need(service.split("/")[0], model or detect_required_model(service))
    ranked = rank(workers, need)
    return ranked[0][0] if ranked else None


def jitter(worker: Candidate, need: Need) -> float:
    """Return the points in [0, 5) that order equals."""
    text = f"{worker.worker_id}\n{need.service}\n{need.model}".encode()
    return JITTER_MAX * int.from_bytes(hashlib.sha256(text).digest()[:6], "big") / 2**48


def detect_required_model(of: str | Mapping[str, Any]) -> str | None:
    """Return the model that a need names, else the one its service's path stands for, else None.

    The first known word decides, and only whole words count: `storage` does not contain `rag`.
    """
    if not isinstance(of, str):
        if of.get("model"):
            return canonical_model(str(of["model"]))
        of = f"{of.get('service') or ''}/{of.get('path') or ''}"
    words = re.split(r"[^a-z0-9]+", of.lower())
    model_of = _known_models("by_service")
    return next((model_of[word] for word in words if word in model_of), None)


def canonical_model(name: str) -> str:
    """Return the name under which a model is compared.

    `:latest` is the same as no tag. Any other tag is another model, and is kept.
    """
    name = name.strip().lower().removesuffix(":latest")
    return _known_models("aliases").get(name, name)


@cache
def _known_models(what: str) -> dict[str, str]:
    """Return what installed packages register about models."""
    known: dict[str, str] = {}
    for entry in entry_points(group=MODELS, name=what):
        known |= entry.load()()
    return known


def _words(value: Any) -> list[str]:
    if isinstance(value, str):
        value = value.split(",")
    return [str(word).strip() for word in value] if isinstance(value, list | tuple) else []


def _lower(value: Any) -> frozenset[str]:
    return frozenset(word.lower() for word in _words(value) if word)


def _number(value: Any) -> float:
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known else 0.0


def _percent(value: Any) -> float | None:
    return None if value is None else _number(value)
