"""Turn inputs into claims: survey, cut, assign, publish.

The planner reads each input once, decides how large a claim may be, gives each spool its share by
weight, largest claims first, and publishes the plan (`pool.plans`). It keeps costs and fingerprints
in memory, but no names and no payloads: `cut` runs three times, to weigh, to assign, and to write
the claims.

What it does not know: what an input is. That is up to the handler.
"""

from __future__ import annotations

import secrets
import time
from array import array
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Final

from fsqueue.errors import BadInput, PoolError, UsageError
from fsqueue.gpu.memory import memory_gib
from fsqueue.gpu.sharing import usable_gib
from fsqueue.handler import Handler, Item, Source, claim_id, source_key
from fsqueue.pool import claims, plans
from fsqueue.pool.plans import Plan, Share
from fsqueue.pool.requirements import compose, requiring
from fsqueue.pool.settings import PoolDirectory, Spool, add_spool, read_spool, spool_names
from fsqueue.scheduling import backlog
from fsqueue.scheduling.assignment import assign
from fsqueue.scheduling.backlog import Wanted
from fsqueue.scheduling.gpu_spec import (
    SpoolSpec,
    parse_gpus,
    parse_weights,
    weighed,
)
from fsqueue.scheduling.supersede import Versions, companions, read_versions, supersede
from fsqueue.storage import atomic, directories, permissions
from fsqueue.storage.name_sets import Fingerprints, mark, repeated

CLAIMS_PER_SPOOL: Final = 8
"""With fewer claims, stealing cannot even out a spool: with 2, a mixed pair ends 25 % late; with 8,
4 % late."""
CLAIM_S: Final = 90.0
"""How long a claim may take on the reference GPU. If shorter, the overhead per claim shows; if
longer, the last claims keep other workers waiting."""


@dataclass(slots=True)
class PlanResult:
    """What planning did, or would do."""

    spools: list[Spool] = field(default_factory=list)
    shares: dict[str, Share] = field(default_factory=dict)
    total: Share = field(default_factory=Share)
    cost_max: int = 0
    largest: int = 0
    already: int = 0
    superseded: int = 0
    """Claims of former versions of the inputs, which this plan replaced."""
    brought_back: int = 0
    """Superseded claims whose input is as it was when they were planned."""
    bad: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    number: int | None = None
    measured: dict[str, float] = field(default_factory=dict)
    """The speed of spools whose workers measured it, in units of weight, by name (R76)."""
    eta_s: float | None = None
    """How long all that waits will take, with a worker per spool; None: not known yet."""
    assigned: list[int] = field(default_factory=list)
    """The spool of each item that `cut` yields, as an index into `spools`."""
    kinds: list[str] = field(default_factory=list)
    too_small: dict[str, str] = field(default_factory=dict)
    """The spools whose GPU cannot hold what the claims need, and why: they get none."""


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What to plan, with which handler, for which spools."""

    handler: Handler
    options: dict[str, Any]
    inputs: Sequence[str]
    spools: Sequence[Spool]
    weighted: bool = True
    claim_s: float = CLAIM_S
    tier: int | None = None
    """The lowest tier of worker that may run the claims; None: the handler's."""
    requires: Sequence[str] = ()
    """Capabilities that workers must have, beside those that the handler requires."""
    timeout_s: float = 0.0
    """How long an attempt may take; 0: any time."""
    broken: Sequence[str] = ()
    """What was found among the inputs and cannot be planned, a line each."""
    notes: Sequence[str] = ()
    """What was left out of the inputs."""
    priority: int = 0
    """0 to 9: claims of a higher one are taken first."""
    retry_requires: str = ""
    """A capability that workers must have for a claim that failed for lack of memory."""
    per_gpu: int = 1
    """How many workers will share each GPU and its memory."""

    def kind(self, base: str) -> str:
        """Return the kind of this request's claims, with what it requires of workers."""
        tier = self.handler.tier if self.tier is None else self.tier
        requires = [*self.handler.requires, *self.requires]
        if self.handler.personal and permissions.is_shared():
            requires.append(permissions.user_capability())
        kind = compose(base, tier, requires)
        if self.retry_requires:
            requiring(kind, self.retry_requires)  # refuses a word that would not be valid
        return kind


Progress = Callable[[int, int, str], None]


def plan_into(
    pool: PoolDirectory, request: PlanRequest, *, progress: Progress | None = None
) -> PlanResult:
    """Publish claims for every input that no earlier plan has. Safe beside other planners."""
    _too_small(request, request.spools)  # raises before there are spools
    plans.complete(pool)
    result = PlanResult(spools=[add_spool(pool, spool) for spool in request.spools])
    sources = _survey(request, result, progress)
    while True:
        numbers = plans.numbers(pool)
        fresh = _fresh(pool, numbers, request, sources, result)
        _weigh(pool, request, fresh, result)
        number = (numbers or [0])[-1] + 1
        if not result.total.claims:
            break
        _keep_files(pool, request)
        if _publish(pool, request, fresh, result, number):
            result.number = number
            break
    if numbers:
        # After the plan was published: claims are superseded only by claims that are there (R43).
        versions = _versions(pool, request, sources)
        result.superseded, result.brought_back = supersede(pool, request.handler, versions)
    return result


def preview(
    pool: PoolDirectory | None, request: PlanRequest, *, progress: Progress | None = None
) -> PlanResult:
    """Return what `plan_into` would do, touching nothing. `pool` is None if there is none yet."""
    result = PlanResult(spools=list(request.spools))
    sources = _survey(request, result, progress)
    numbers = plans.numbers(pool) if pool else []
    fresh = _fresh(pool, numbers, request, sources, result)
    _weigh(pool, request, fresh, result)
    if pool is not None and numbers:
        versions = _versions(pool, request, [*sources, *fresh])
        found = supersede(pool, request.handler, versions, dry_run=True)
        result.superseded, result.brought_back = found
    return result


# ---- the steps ----


def _survey(request: PlanRequest, result: PlanResult, progress: Progress | None) -> list[Source]:
    result.bad += request.broken
    result.notes += request.notes
    sources = []
    for index, path in enumerate(request.inputs):
        if progress:
            progress(index, len(request.inputs), path)
        try:
            source = request.handler.survey(path, request.options)
        except BadInput as error:
            result.bad.append(str(error))
            continue
        result.notes += source.notes
        sources.append(source)
    return sources


def _fresh(
    pool: PoolDirectory | None,
    numbers: Sequence[int],
    request: PlanRequest,
    sources: list[Source],
    result: PlanResult,
) -> list[Source]:
    fresh = {source_key(request.handler, request.options, source): source for source in sources}
    for number in numbers:
        assert pool is not None, "a plan has a number, so there is a pool"
        for key in plans.read_sources(pool, number):
            fresh.pop(key, None)
    result.already = len(sources) - len(fresh)
    if pool is not None and numbers:
        fresh |= _companions(pool, request, sources, fresh, result)
    return list(fresh.values())


def _companions(
    pool: PoolDirectory,
    request: PlanRequest,
    sources: list[Source],
    fresh: dict[str, Source],
    result: PlanResult,
) -> dict[str, Source]:
    """Return the inputs that share a claim with one that changed, to be planned again (R44)."""
    versions = _versions(pool, request, sources)
    found = {}
    for path in sorted(companions(pool, request.handler, versions)):
        try:
            source = request.handler.survey(path, request.options)
        except BadInput as error:
            result.notes.append(f"{error} It shares a claim with an input that changed.")
            continue
        found[source_key(request.handler, request.options, source)] = source
    return {key: source for key, source in found.items() if key not in fresh}


def _versions(pool: PoolDirectory, request: PlanRequest, sources: list[Source]) -> Versions:
    current = {s.path: source_key(request.handler, request.options, s) for s in sources}
    return read_versions(pool, request.handler, request.options, current)


def _weigh(
    pool: PoolDirectory | None, request: PlanRequest, fresh: list[Source], result: PlanResult
) -> None:
    """Decide the largest claim, cut, and give every claim to a spool; fill in the result."""
    # By the GPUs' own weights even where the shares ignore them: the cuts, and so the outputs, are
    # the same with weighting on and off.
    result.too_small = _too_small(request, result.spools)
    fitting = [n for n, spool in enumerate(result.spools) if spool.name not in result.too_small]
    spools = [result.spools[n] for n in fitting]
    own = [spool.weight for spool in spools]
    cost = sum(source.cost for source in fresh)
    result.cost_max = cost_limit(cost, own, request.handler, request.claim_s)
    costs, kinds = array("d"), dict[str, None]()
    for item in _cut(request, fresh, result):
        costs.append(item.cost)
        kinds[item.kind] = None
    result.kinds = sorted(map(request.kind, kinds))
    result.shares = {spool.name: Share() for spool in result.spools}
    result.total = Share()
    result.largest = int(max(costs, default=0))
    loads, weights = None, own
    unit, before = request.handler.cost_per_second, 0.0
    if pool is not None and costs:
        kind = request.kind(next(iter(kinds)))
        wanted = Wanted(request.handler.name, kind, request.handler.cost_per_second)
        live = backlog.look(pool)
        loads = backlog.loads(live, spools, wanted)
        speeds = backlog.spool_speeds(pool, live, spools, wanted)
        weights, unit = list(speeds.by_spool), speeds.unit
        before = backlog.ahead(live)
        if request.weighted:
            pairs = zip(spools, weights, strict=True)
            result.measured = {s.name: w for s, w in pairs if s.name in speeds.measured}
    result.eta_s = (before + sum(costs)) / (unit * sum(weights)) if unit and costs else None
    if not request.weighted:
        weights = [1.0] * len(own)
    result.assigned = [fitting[slot] for slot in assign(costs, weights, loads)]
    for item, slot in zip(_cut(request, fresh, result), result.assigned, strict=True):
        result.shares[result.spools[slot].name].add(item.cost, dict(item.measures))
        result.total.add(item.cost, dict(item.measures))


def _too_small(request: PlanRequest, spools: Sequence[Spool]) -> dict[str, str]:
    """Return the spools whose GPU is known to lack the memory that the handler asks for.

    Raises UsageError if that is all of them.
    """
    needed_gib = request.handler.gpu_memory_gib(request.options)
    found = {}
    for spool in spools:
        has_gib = spool.memory_gib or memory_gib(spool.model)
        if has_gib is not None and usable_gib(has_gib, request.per_gpu) < needed_gib:
            shared = f" for {request.per_gpu} workers" if request.per_gpu > 1 else ""
            found[spool.name] = f"needs {needed_gib:.1f} GiB, has {has_gib:.0f}{shared}"
    if found and len(found) == len(spools):
        models = ", ".join(sorted({spool.model for spool in spools}))
        each = f" for each of the {request.per_gpu} workers of a GPU" if request.per_gpu > 1 else ""
        fewer = ", fewer workers --per-gpu" if request.per_gpu > 1 else ""
        raise UsageError(
            f"--gpus: no GPU of this plan can hold the work, which needs {needed_gib:.1f} GiB of "
            f"memory at least{each}: {models}. Name a larger one, or plan what needs less (--dtype "
            f"float16 or bfloat16, a smaller model{fewer})."
        )
    return found


def _cut(request: PlanRequest, fresh: Sequence[Source], result: PlanResult) -> Iterator[Item]:
    return request.handler.cut(fresh, request.options, result.cost_max)


def cost_limit(
    cost: float, weights: Sequence[float], handler: Handler, claim_s: float = CLAIM_S
) -> int:
    """Return how expensive one claim may be, of `cost` shared out by `weights`.

    The smallest share then has CLAIMS_PER_SPOOL claims, and no claim takes longer than `claim_s` on
    the reference GPU, as far as the handler can tell.
    """
    limits = [cost * min(weights) / sum(weights) / CLAIMS_PER_SPOOL]
    if handler.cost_per_second is not None:
        limits.append(claim_s * handler.cost_per_second)
    if handler.cost_max is not None:
        limits.append(handler.cost_max)
    return max(1, int(min(limits)))


def _keep_files(pool: PoolDirectory, request: PlanRequest) -> None:
    """Publish the files that the plan's claims need, before any of the claims."""
    for name, data in request.handler.kept_files(request.options).items():
        directories.make(pool.code())
        atomic.publish(pool.code(name), data, personal=request.handler.personal)


def _publish(
    pool: PoolDirectory, request: PlanRequest, fresh: list[Source], result: PlanResult, number: int
) -> bool:
    """Publish the plan under this number; False, leaving nothing behind, if another plan has it."""
    uid = secrets.token_hex(6)
    with plans.unless_forbidden(pool, uid):
        try:
            private = _write(pool, uid, request, fresh, result)
        except BaseException:
            directories.discard(pool.staged(uid))
            atomic.discard(plans.private_path(pool, uid))
            raise
        # From here on an error cleans nothing up: this plan may have got the number.
        numbered = plans.number_plan(pool, uid, private, number)
    if numbered:
        plans.complete_one(pool, uid)
        return True
    # RACE: another planner took this number. What it planned must not be planned again.
    atomic.discard(private)
    directories.discard(pool.staged(uid))
    return False


def _write(
    pool: PoolDirectory, uid: str, request: PlanRequest, fresh: list[Source], result: PlanResult
) -> str:
    """Write the claims and the plan under private names; return the plan's."""
    directories.make(pool.staged(uid))
    for spool in result.spools:
        directories.make(pool.staged(uid, spool.name))
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    handler = request.handler
    given = handler.suffix, result.total, result.shares, request.options, result.cost_max
    kinds = tuple(result.kinds)
    head = Plan(
        uid,
        created,
        handler.name,
        kinds,
        *given,
        request.timeout_s,
        request.priority,
        request.retry_requires,
    )
    keys = ((source_key(request.handler, request.options, s), s.path) for s in fresh)
    # Each claim is written with its row, so that a million names need not be kept for the rows.
    private = plans.write_plan(pool, head, keys, _stage(pool, uid, request, fresh, result))
    for spool in result.spools:
        atomic.sync_directory(pool.staged(uid, spool.name))
    atomic.sync_directory(pool.staged(uid))
    return private


def _stage(
    pool: PoolDirectory, uid: str, request: PlanRequest, fresh: list[Source], result: PlanResult
) -> Iterator[tuple[str, str]]:
    """Write each claim under plans/UID.staged, synced, and yield its name and spool."""
    seen = Fingerprints()
    for item, slot in zip(_cut(request, fresh, result), result.assigned, strict=True):
        id = claim_id(request.handler, request.options, item)
        home = result.spools[slot].name
        name = claims.waiting_name(id, request.kind(item.kind), item.cost, request.priority)
        facts = request.options, dict(item.payload), dict(item.measures)
        claim = claims.Claim(
            request.handler.name,
            home,
            *facts,
            request.handler.suffix,
            timeout_s=request.timeout_s,
            retry_requires=request.retry_requires,
        )
        path, data = f"{pool.staged(uid, home)}/{name}", claim.encode(name)
        try:
            atomic.stage(path, (data,), personal=request.handler.personal)
        except FileExistsError:
            _refuse_same(request, _cut(request, fresh, result), {mark(id)})
            raise
        seen.add(id)
        yield str(name), home
    if marks := repeated(seen):
        _refuse_same(request, _cut(request, fresh, result), marks)


def _refuse_same(request: PlanRequest, items: Iterator[Item], marks: Set[int]) -> None:
    """Refuse the plan if two of its claims whose ids have these fingerprints have one id."""
    seen: set[str] = set()
    for item in items:
        id = claim_id(request.handler, request.options, item)
        if id in seen:
            raise PoolError(
                f"two claims of this plan have the id {id}; the handler {request.handler.name!r} "
                f"gave them one identity. This is a bug in the handler: report it."
            )
        if mark(id) in marks:
            seen.add(id)


# ---- spools ----


def choose_spools(
    pool: PoolDirectory | None, spec: str | None, weights: Sequence[str] = ()
) -> list[Spool]:
    """Return the spools of a plan: those of a `--gpus` SPEC, else the pool's, else this machine's.

    `weights` are `NAME=WEIGHT` or `@FILE`. A spool that the pool has keeps the weight of its first
    plan; UsageError for a weight that contradicts it.
    """
    known = {spool.name: spool for spool in pool_spools(pool)} if pool else {}
    given = parse_weights(weights)
    if spec is None and known:
        specs = [
            SpoolSpec(s.name, s.model, s.weight, s.why, memory_gib=s.memory_gib)
            for s in known.values()
        ]
    else:
        specs = parse_gpus(spec or "auto")
    spools = []
    for asked in weighed(specs, given):
        present = known.get(asked.name)
        if present is not None and asked.overridden and present.weight != asked.weight:
            raise UsageError(
                f"--weight: {asked.name} has had weight {present.weight:g} in this pool since its "
                f"first plan. To change that, edit spools/{asked.name}.json."
            )
        spools.append(
            present or Spool(asked.name, asked.model, asked.weight, asked.why, asked.memory_gib)
        )
    return spools


def pool_spools(pool: PoolDirectory) -> list[Spool]:
    """Return the spools of a pool, as its first plan made them."""
    return [read_spool(pool, name) for name in spool_names(pool)]
