"""What a pool must hold after each step of any process: a dictionary, and no files.

`Model` knows the protocol as ARCHITECTURE.md describes it, not the code. For each step it predicts
what becomes of every claim, lease, output, error record, checkpoint and order: `sure` is what must
happen if nothing goes wrong, and `may` what can also be true if something does. What no step has
reason to change must stay as it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final

from fsqueue.pool.names import ClaimName, LeaseName, Role, role_of
from tests.sim.disk import COMMIT_S, Disk
from tests.sim.world import Violation

Key = tuple[Any, ...]
"""("claim", ID), ("lease", WORKER), ("output", ID), ("record", ID, ATTEMPT), ("saved", ID, PART) or
("order", NAME)."""
Facts = dict[Key, Any]
OWNED: Final = ("running", "done", "failed")
SPOOLS: Final = ("gpu0", "gpu1")
PARTS: Final = ("part0", "part1")


@dataclass(frozen=True, slots=True)
class At:
    """Where a claim is: in which area, whose spool or in whose name, at which attempt."""

    area: str
    where: str
    attempt: int = 0
    returns: int = 0
    vain: int = field(default=0, compare=False)
    """How often it was put back in vain, which is not predicted."""


def fact(path: str, plans: Iterable[str] = ()) -> tuple[Key, Any] | None:
    """Return the fact that a path below the pool's root stands for, if any."""
    area, *rest = path.split("/")
    name = rest[-1] if rest else ""
    if not rest or name.startswith("."):
        return None
    if area in ("outputs", "control") and len(rest) == 1:
        return ("output" if area == "outputs" else "order", name.removesuffix(".txt")), True
    if area == "errors" and ".r" in name:
        return None  # why it was put back: a hint
    if area == "errors":
        id, _, attempt = name.removesuffix(".json").rpartition(".a")
        if not id:
            return None  # of a run in vain, which is only a hint
        return ("record", id, int(attempt)), True
    if area == "partial" and len(rest) == 2:
        return ("saved", *rest), True
    if area == "workers" and (lease := LeaseName.parse(name)) is not None:
        return ("lease", lease.worker), lease.beat if lease.living else _end(lease)
    return _claim(area, rest, plans)


def _end(lease: LeaseName) -> str:
    return "dead" if lease.ended_by else "left"


def _claim(area: str, rest: list[str], plans: Iterable[str]) -> tuple[Key, Any] | None:
    if area == "plans" and len(rest) == 3 and rest[0].removesuffix(".staged") in plans:
        area, where = "staged", rest[1]
    elif area == "spools" and len(rest) == 2:
        where = rest[0]
    elif area in OWNED and len(rest) == 1:
        where = ""
    else:
        return None
    name = ClaimName.parse(rest[-1])
    if name is None:
        return None
    owner = name.owner or ""
    owner = "cancel" if role_of(owner) is Role.CANCEL else owner
    return ("claim", name.id), At(area, where or owner, name.attempt, name.returns, name.vain)


def facts_of(disk: Disk, root: str, plans: Iterable[str]) -> Facts:
    """Return what the disk holds; Violation if a claim is in two places."""
    facts: Facts = {}
    for path, _ in disk.below(root):
        found = fact(path[len(root) + 1 :], plans)
        if found is None:
            continue
        key, value = found
        if key[0] == "claim" and key in facts:
            raise Violation(f"I1: {key[1]} is at {facts[key]} and at {value}")
        if not (key[0] == "lease" and isinstance(facts.get(key), str)):
            facts[key] = value
    return facts


@dataclass(slots=True)
class Prediction:
    """What a step comes to."""

    sure: dict[Key, set[Any]] = field(default_factory=dict)
    """What becomes of it if nothing goes wrong."""
    may: dict[Key, set[Any]] = field(default_factory=dict)
    """What else may, if something does."""
    sweeps: bool = False
    """Whether the claims of all whose lease is over must have been recovered."""

    def all(self) -> Iterator[tuple[Key, Any]]:
        """Yield everything that may come of it, with or without faults."""
        for values in (self.sure, self.may):
            yield from ((key, value) for key in values for value in values[key])

    def add(self, other: Prediction) -> Prediction:
        """Add another prediction."""
        for mine, theirs in ((self.sure, other.sure), (self.may, other.may)):
            for key, values in theirs.items():
                mine[key] = mine.get(key, set()) | values
        self.sweeps |= other.sweeps
        return self


class Model:
    """A pool as the protocol describes it."""

    def __init__(self, attempts_max: int) -> None:
        self.attempts_max = attempts_max
        self.facts: Facts = {}
        self.homes: dict[str, str] = {}
        self.seen: dict[str, frozenset[str]] = {}
        """Which orders each worker has seen."""
        self.changed: dict[Key, float] = {}
        self._past: list[tuple[float, Key, Any]] = []

    # ---- looking ----

    def claim(self, id: str) -> At | None:
        """Return where a claim is, None if it is not planned."""
        found: At | None = self.facts.get(("claim", id))
        return found

    def of(self, *areas: str) -> list[tuple[str, At]]:
        """Return the claims in these areas."""
        return [(key[1], at) for key, at in self.facts.items()
                if key[0] == "claim" and at.area in areas]  # fmt: skip

    def held(self, worker: str) -> list[str]:
        """Return what a worker runs, or holds without knowing."""
        return [id for id, at in self.of("running") if at.where == worker]

    def orders(self) -> set[str]:
        """Return the orders that are given to all workers."""
        return {key[1] for key in self.facts if key[0] == "order" and "@" not in key[1]}

    def lives(self, worker: str) -> bool:
        """Return whether a worker's lease holds."""
        return isinstance(self.facts.get(("lease", worker)), int)

    # ---- steps of one claim ----

    def charged(self, id: str, *, final: bool = False) -> At:
        """Return where a running claim goes whose attempt failed."""
        at = self.facts["claim", id]
        if final or (at.attempt + 1) % self.attempts_max == 0:
            return replace(at, area="failed")
        return At("spools", self.homes[id], at.attempt + 1, at.returns + 1)

    def released(self, id: str, spool: str = "") -> At:
        """Return where a running claim goes that its owner puts back."""
        at = self.facts["claim", id]
        return At("spools", spool or self.homes[id], at.attempt, at.returns + 1)

    def recovered(self, id: str) -> At:
        """Return where a claim of the dead goes."""
        return self.released(id) if ("output", id) in self.facts else self.charged(id)

    def retried(self, id: str) -> At:
        """Return where a failed claim goes when it is retried."""
        at = self.facts["claim", id]
        rounds = at.attempt // self.attempts_max + 1
        return At("spools", self.homes[id], rounds * self.attempts_max, at.returns + 1)

    # ---- steps ----

    def take(self, worker: str, spool: str, id: str, at: At) -> Prediction:
        """Predict that a worker takes a claim that waits, or waited, at `at`, and begins it."""
        seen = self._disturbed(worker, id)
        mine = replace(at, area="running", where=worker)
        adopts = at.returns > 0 and ("output", id) in self.facts
        if self.claim(id) == at and at.where == spool:
            seen.sure["claim", id] = {replace(mine, area="done")} if adopts else {mine}
        elif self.claim(id) == mine and adopts:  # it was stopped between the take and the finish
            seen.sure["claim", id] = {replace(mine, area="done")}
        else:
            return seen
        if adopts:
            self._forgets(seen, worker, id)
        return seen

    def finish(self, worker: str, id: str, at: At) -> Prediction:
        """Predict that a worker finishes a claim that it took as `at`."""
        seen = self._disturbed(worker, id)
        if self.claim(id) != at:  # a zombie: it may publish, and it may remove what was saved
            for key in [("output", id), *self._saved(id)]:
                seen.sure[key] = {self.facts.get(key), None if key[0] == "saved" else True}
            return seen
        seen.sure |= {("claim", id): {replace(at, area="done")}, ("output", id): {True}}
        self._forgets(seen, worker, id)
        if not at.returns:  # whose first attempt a power loss undid, and not what it had saved
            for key in self._saved(id):
                seen.sure[key].add(True)
        if not self.lives(worker):  # the process that declared it dead has removed what it wrote
            seen.sure["claim", id] |= {self.charged(id)}
            seen.sure["output", id] |= {self.facts.get(("output", id))}
            seen.sure["record", id, at.attempt] = {True, None}
            for key in self._saved(id):
                seen.sure[key].add(True)
        return seen

    def fail(self, worker: str, id: str, at: At, *, final: bool, leaves: bool) -> Prediction:
        """Predict that an attempt fails, for good or not; it may be the worker's third in a row."""
        seen = self._disturbed(worker, id)
        if self.claim(id) == at:
            seen.sure["claim", id] = {self.charged(id, final=final)}
            seen.sure["record", id, at.attempt] = {True}
        self._leaves(seen, worker, surely=leaves, ended=id)
        return seen

    def stop(self, worker: str, id: str, at: At) -> Prediction:
        """Predict that a worker ends a claim unfinished: by an order, or a cancellation."""
        order = f"cancel@{id}"
        if order in self.seen.get(worker, ()) and ("order", order) in self.facts:
            seen = self.fail(worker, id, at, final=True, leaves=False)
            if self.claim(id) == at:
                seen.sure["order", order] = {None}
            return seen
        seen = self._disturbed(worker, id)
        if self.claim(id) == at:
            seen.sure["claim", id] = {self.released(id)}
        return seen

    def save(self, worker: str, id: str, part: str) -> Prediction:
        """Predict that a worker saves a part of its work."""
        seen = self._disturbed(worker, id)
        seen.sure["saved", id, part] = {True}
        return seen

    def renew(self, worker: str, beat: int) -> Prediction:
        """Predict the beat after the last that the worker knows of, if the lease is not over."""
        seen = self._disturbed(worker)
        if self.lives(worker):
            seen.sure["lease", worker] = {beat + 1}
            seen.may["lease", worker] |= {beat + 1}
        return seen

    def leave(self, worker: str, spool: str) -> Prediction:
        """Predict that a worker puts back what it holds, and retires."""
        seen = self._disturbed(worker)
        for id in self.held(worker):
            seen.sure["claim", id] = {self.released(id, spool)}
        self._leaves(seen, worker, surely=True)
        return seen

    def recover(self) -> Prediction:
        """Predict that a recoverer watches for more than a lease, during which no worker beats."""
        leases = [key[1] for key, beat in self.facts.items()
                  if key[0] == "lease" and isinstance(beat, int)]  # fmt: skip
        seen = self.sweep("", leases)
        for id, at in self.of("running"):
            seen.sure["claim", id] = {self.recovered(id)}
            if self.recovered(id).attempt != at.attempt or self.recovered(id).area == "failed":
                seen.sure["record", id, at.attempt] = {True}
        return seen

    def idle(self, me: str, seen: Prediction) -> Prediction:
        """Predict that an idle worker looks around: it sweeps, finds its own, or leaves."""
        for id in self.held(me):
            at = self.facts["claim", id]
            if at.returns and ("output", id) in self.facts:
                seen.sure["claim", id] = {at, replace(at, area="done")}
                self._forgets(seen, me, id)
        self._leaves(seen, me, surely=False)
        return seen

    def enlist(self, worker: str) -> Prediction:
        """Predict a new lease."""
        return Prediction({("lease", worker): {0}}, {("lease", worker): {0, "left"}})

    def by_hand(self, id: str, at: At) -> Prediction:
        """Predict what was done by hand already."""
        return Prediction({("claim", id): {at}})

    def sweep(self, me: str, may_end: Iterable[str], must_end: Iterable[str] = ()) -> Prediction:
        """Predict that a recoverer looks for dead workers, and puts back what they held."""
        seen = self._disturbed(me) if me else Prediction()
        seen.sweeps = True
        for worker in may_end:
            seen.sure["lease", worker] = {self.facts["lease", worker], "dead"}
        for worker in must_end:
            seen.sure["lease", worker] = {"dead"}
        for id, at in self.of("running"):
            if at.where != me:
                seen.add(self._disturbed(at.where, id))
                record = "record", id, at.attempt
                seen.sure["claim", id] = {at, self.recovered(id)}
                seen.sure[record] = {self.facts.get(record), True}
        return seen.add(self.complete())

    def complete(self) -> Prediction:
        """Predict that what a numbered plan has staged comes to its spool."""
        seen = Prediction()
        for id, at in self.of("staged"):
            seen.sure["claim", id] = {replace(at, area="spools")}
            seen.may["claim", id] = {replace(at, area="spools")}
        return seen

    def plan(self, ids: Iterable[str]) -> Prediction:
        """Predict that these inputs are planned, unless they are."""
        seen = self.complete()
        for id in ids:
            if self.claim(id) is None:
                seen.sure["claim", id] = {At("spools", spool) for spool in SPOOLS}
                staged = {At("staged", spool) for spool in SPOOLS}
                seen.may["claim", id] = seen.sure["claim", id] | staged
        return seen

    def retry(self, ids: Iterable[str]) -> Prediction:
        """Predict that these claims, if they failed, are put back."""
        seen = Prediction()
        for id in ids:
            at = self.claim(id)
            if at is not None and at.area == "failed":
                seen.sure["claim", id] = seen.may["claim", id] = {self.retried(id)}
                seen.sure["order", f"cancel@{id}"] = seen.may["order", f"cancel@{id}"] = {None}
        return seen

    def cancel(self, ids: Iterable[str]) -> Prediction:
        """Predict that these claims end in failed/ if they wait, and are to be stopped if not."""
        seen = Prediction()
        for id in ids:
            at = self.claim(id)
            if at is not None and at.area == "spools":
                seen.sure["claim", id] = seen.may["claim", id] = {
                    replace(at, area="failed", where="cancel")
                }
                seen.sure["record", id, at.attempt] = seen.may["record", id, at.attempt] = {True}
            elif at is not None and at.area == "running":
                seen.sure["order", f"cancel@{id}"] = seen.may["order", f"cancel@{id}"] = {True}
        return seen

    def order(self, name: str, *, given: bool) -> Prediction:
        """Predict that an order is given to all, or taken back."""
        return Prediction({("order", name): {given or None}}, {("order", name): {given or None}})

    # ---- parts ----

    def _saved(self, id: str) -> list[Key]:
        return [("saved", id, part) for part in PARTS if ("saved", id, part) in self.facts]

    def _forgets(self, seen: Prediction, worker: str, id: str) -> None:
        """What was saved of a claim that is done is removed, and so is an order to cancel it."""
        for key in self._saved(id):
            seen.sure[key] = {None}
        if f"cancel@{id}" in self.seen.get(worker, ()):
            seen.sure["order", f"cancel@{id}"] = {None}

    def _leaves(self, seen: Prediction, worker: str, *, surely: bool, ended: str = "") -> None:
        """A worker that leaves puts back whatever it holds, but for the claim that has `ended`."""
        beat = self.facts.get(("lease", worker))
        if isinstance(beat, int):
            seen.sure["lease", worker] = {"left"} if surely else {beat, "left"}
        for id in self.held(worker):
            if id != ended:
                back = {self.released(id, spool) for spool in SPOOLS}
                stays = set() if surely else {self.facts["claim", id]}
                seen.sure.setdefault(("claim", id), back | stays)

    def _disturbed(self, worker: str, *ids: str) -> Prediction:
        """Return all that may become of a worker and of what it holds when something goes wrong."""
        seen = Prediction()
        beat = self.facts.get(("lease", worker))
        seen.may["lease", worker] = {beat, "left"} if isinstance(beat, int) else {beat}
        for id in {*ids, *self.held(worker)}:
            at = self.claim(id)
            if at is None:
                continue
            seen.may["claim", id] = set(self._around(at, worker))
            seen.may["record", id, at.attempt] = {True}
            seen.may["output", id] = {True}
            seen.may["order", f"cancel@{id}"] = {None}
            for part in PARTS:
                seen.may["saved", id, part] = {True, None}
        return seen

    @staticmethod
    def _around(at: At, worker: str) -> Iterator[At]:
        """Yield wherever a worker can move a claim with what it does next, and with leaving."""
        if at.area == "spools":
            yield (at := replace(at, area="running", where=worker))
        if at.area == "running" and at.where == worker:
            yield replace(at, area="done")
            yield replace(at, area="failed")
            for spool in SPOOLS:
                for charged in (0, 1):
                    yield At("spools", spool, at.attempt + charged, at.returns + 1)

    def merged(self, seen: Prediction, old: Prediction, *, command: bool) -> Prediction:
        """Allow what was predicted when a process began its step, too, now that it continues.

        A worker's claim that moved meanwhile is no longer its own. A sweep or a command moves any
        worker's claims, and goes by what it saw before.
        """
        command |= seen.sweeps
        seen.sweeps = False
        for key, value in old.all():
            if command or key[0] != "claim":
                seen.sure.setdefault(key, {self.facts.get(key)}).add(value)
        for key, values in seen.sure.items():
            if command and not (key[0] == "claim" and key not in self.facts):
                values.add(self.facts.get(key))
        return seen

    # ---- judging ----

    def allow_late(self, paths: Iterable[str], seen: Prediction, ids: Iterable[str]) -> None:
        """Let what was asked for long ago be done by now: these paths appear, or go."""
        for path in paths:
            found = fact(path)
            if found is not None:
                key, value = found
                known = seen.sure.setdefault(key, {self.facts.get(key)})
                known |= {value, None} if key[0] == "order" else {value}
            elif path.startswith("plans/"):
                for key in [("claim", id) for id in ids if self.claim(id) is None]:
                    known = seen.sure.setdefault(key, {None})
                    known |= {At("staged", spool) for spool in SPOOLS}

    def judge(self, now: float, actual: Facts, seen: Prediction, *, calm: bool) -> None:
        """Compare what is there with the prediction, and continue from there; raises Violation."""
        for key in {*self.facts, *actual, *seen.sure}:
            was, value = self.facts.get(key), actual.get(key)
            allowed = seen.sure.get(key, {was})
            if not calm:
                allowed = allowed | {was} | seen.may.get(key, set())
            if value not in allowed:
                wanted = " or ".join(sorted(map(str, allowed)))
                raise Violation(f"model: {key} was {was}, is {value}, and must be {wanted}")
        if calm and seen.sweeps:
            self._judge_sweep(actual, seen)
        self._go_on(now, actual, seen, calm=calm)

    def _judge_sweep(self, actual: Facts, seen: Prediction) -> None:
        for id, at in self.of("running"):
            key, lease = ("claim", id), actual.get(("lease", at.where))
            if len(seen.sure.get(key, ())) < 2 or lease is None:
                continue
            wanted = at if isinstance(lease, int) else self.recovered(id)
            if actual[key] != wanted:
                raise Violation(f"model: {id} is {actual[key]}, and the lease is {lease}")
            if wanted != at and wanted.attempt > at.attempt and (
                "record", id, at.attempt) not in actual:  # fmt: skip
                raise Violation(f"model: {id} was charged, and has no record")

    def _go_on(self, now: float, actual: Facts, seen: Prediction, *, calm: bool) -> None:
        """Take what is there for true; what it was, or was in between, a power loss may restore."""
        self._past += [(now, *entry) for entry in seen.all()]
        for key in {*self.facts, *actual}:
            was, value = self.facts.get(key), actual.get(key)
            if was == value:
                continue
            self.changed[key] = now
            if was is not None or not calm:  # what appears is synced before its maker goes on
                self._past.append((now, key, was))
        self._learn_homes(actual)
        self._past = [entry for entry in self._past if entry[0] >= now - 1.5 * COMMIT_S]
        self.facts = actual

    def _learn_homes(self, actual: Facts) -> None:
        new = (key for key in actual if key[0] == "claim" and key not in self.facts)
        self.homes.update((key[1], actual[key].where) for key in new)

    def lose_power(self, now: float, actual: Facts, seen: Prediction) -> None:
        """Judge what a power loss left: all that is old or was synced, and some of the rest."""
        allowed = {key: {self.facts.get(key)} for key in {*self.facts, *actual}}
        for key, value in [entry[1:] for entry in self._past] + list(seen.all()):
            allowed.setdefault(key, {self.facts.get(key)}).add(value)
        for key, values in allowed.items():
            if actual.get(key) not in values:
                raise Violation(f"model: the power loss made {key} {actual.get(key)}: {values}")
        self._past.clear()
        self._learn_homes(actual)
        self.facts, self.seen = actual, {}
        self.changed = dict.fromkeys(actual, now)
