#!/usr/bin/env python3
"""Measure how close to the best possible end a pool's policy comes, on simulated time.

    scripts/bench/makespan.py                      the tables of docs/benchmarks.md (some minutes)
    scripts/bench/makespan.py --instances 20       a quick look

The cuts are `planner.cost_limit`'s, the shares `weights.assign`'s, the choices `choose.choose`'s:
the very functions that workers run. Simulated is what is around them: claims that take time, polls,
statuses that lag, leases that expire. One number is the makespan over a bound that nothing beats:
all work at the speed of all GPUs there are at each moment, or the largest piece on the fastest.

An instance has 4, 8 or 16 GPUs of the nine given models and 4-40 files for each, of 60 s on an RTX
3090 on average; what a file takes is known to a factor exp(N(0, 0.1)). Weights are right, or wrong
by a factor of 0.5 to 2 for each GPU. Everything follows from the seed: the same instances for every
policy, and the same numbers on every machine.
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from fsqueue.gpu.weights import GPU_WEIGHTS
from fsqueue.handler import Handler
from fsqueue.pool.names import ClaimName
from fsqueue.scheduling import choose as policy_module
from fsqueue.scheduling.assignment import assign
from fsqueue.scheduling.choose import (
    LOAD_S,
    PLENTY,
    Patience,
    Peer,
    Preferences,
    choose,
    in_order,
    polls_for,
    takes_too_long,
)
from fsqueue.scheduling.peers import held_by
from fsqueue.scheduling.planner import cost_limit

GIVEN = "RTX 3080,RTX 3090,RTX 4080,RTX 4090,RTX A6000,A100,H100,V100 16GB,V100 32GB".split(",")
UNIT = 1000.0
"""Cost of a second on an RTX 3090."""
POLL_S, SECOND_LOOK_S, STATUS_S = 3.0, 0.3, 2.0
TASTE = Preferences()


# ---- instances ----


@dataclass(frozen=True, slots=True)
class Policy:
    """Which of the two mechanisms are on; `shared` is one spool for all, in the files' order."""

    weighted: bool = False
    stealing: bool = False
    shared: bool = False
    load_s: float = 0.0
    """What it takes to load a model; claims are of several kinds then."""
    affinity: bool = True
    """Whether a worker knows what is loaded where."""


POLICIES = {
    "both": Policy(weighted=True, stealing=True),
    "stealing only": Policy(stealing=True),
    "weights only": Policy(weighted=True),
    "neither": Policy(),
    "one shared FIFO": Policy(shared=True),
}


@dataclass(frozen=True, slots=True)
class Card:
    """One GPU: what it is thought to be worth, what it does, and when it is there."""

    weight: float
    speed: float
    joins: float = 0.0
    leaves: float = math.inf
    dies: bool = False


@dataclass(frozen=True, slots=True)
class Instance:
    """GPUs, and files as (seconds on a 3090, estimated cost)."""

    cards: tuple[Card, ...]
    files: tuple[tuple[float, float], ...]


def instance(shape: str, number: int, *, wrong: bool, event: str) -> Instance:
    """Return one instance; the same numbers give the same one."""
    rng = random.Random(f"{shape} {number}")
    weights = [GPU_WEIGHTS[rng.choice(GIVEN)] for _ in range(rng.choice((4, 8, 16)))]
    factors = [2 ** rng.uniform(-1, 1) if wrong else 1.0 for _ in weights]
    count = len(weights) * rng.randint(4, 40)
    seconds = [_seconds(shape, rng) for _ in range(count)]
    mean = 60.0 * count / sum(seconds)
    files = [(s * mean, s * mean * UNIT * math.exp(rng.gauss(0, 0.1))) for s in seconds]
    cards = [Card(w, w * factor) for w, factor in zip(weights, factors, strict=True)]
    whole = 60.0 * count / sum(card.speed for card in cards)
    one, when = rng.randrange(len(cards)), rng.random()
    card = cards[one]
    if event == "joins late":
        cards[one] = Card(card.weight, card.speed, joins=whole * (0.2 + 0.4 * when))
    elif event == "dies":
        cards[one] = Card(card.weight, card.speed, leaves=whole * (0.2 + 0.5 * when), dies=True)
    elif event == "has a walltime":
        cards[one] = Card(card.weight, card.speed, leaves=whole * (0.3 + 0.5 * when))
    return Instance(tuple(cards), tuple(files))


def _seconds(shape: str, rng: random.Random) -> float:
    if shape == "equal":
        return 1.0
    if shape == "lognormal":
        return math.exp(rng.gauss(0, 1))
    return min(rng.paretovariate(1.2), 60.0)


@dataclass(frozen=True, slots=True)
class Piece:
    """A claim to be: what it takes on an RTX 3090, and what it is thought to."""

    seconds: float
    cost: int
    kind: str = "kind"


def cut(files: Sequence[tuple[float, float]], weights: Sequence[float]) -> list[Piece]:
    """Divide files into equal parts as `cost_limit` says."""
    handler = Handler()
    handler.cost_per_second = UNIT
    limit = cost_limit(sum(cost for _, cost in files), weights, handler)
    pieces = []
    for seconds, cost in files:
        parts = math.ceil(cost / limit)
        pieces += [Piece(seconds / parts, max(1, int(cost / parts)))] * parts
    return pieces


def bound(cards: Sequence[Card], pieces: Sequence[Piece]) -> float:
    """Return a lower bound of the makespan."""
    work = sum(piece.seconds for piece in pieces)
    largest = max(piece.seconds for piece in pieces) / max(card.speed for card in cards)
    now = 0.0
    changes = {time for card in cards for time in (card.joins, card.leaves) if time > 0}
    for change in sorted(changes | {math.inf}):
        speed = sum(card.speed for card in cards if card.joins <= now < card.leaves)
        if speed and work <= speed * (change - now):
            return max(now + work / speed, largest)
        work -= speed * (change - now)
        now = change
    raise AssertionError("no worker is left")


# ---- the simulation ----


@dataclass(slots=True)
class Worker:
    """A worker, as `fsqueue.worker.worker` and `fsqueue.worker.claim_source` would have it."""

    id: str
    card: Card
    spool: str
    rates: dict[str, float] = field(default_factory=dict)
    running: ClaimName | None = None
    home: str = ""
    since: float = 0.0
    ran: int = 0
    idle_polls: int = 0
    gone: bool = False
    ended: bool = False
    """Its lease is ended; until then others reckon with it."""
    patience: Patience = field(default_factory=Patience)
    waited: set[str] = field(default_factory=set)
    loaded: frozenset[str] = frozenset()
    loads: int = 0
    cold: bool = False
    swept: float = -math.inf
    silent: dict[str, float] = field(default_factory=dict)
    """Since when it has seen a beat not move."""


class Simulation:
    """One run of one policy on one instance."""

    def __init__(
        self, cards: Sequence[Card], pieces: Sequence[Piece], policy: Policy, lease_s: float
    ) -> None:
        self.policy = policy
        self.lease_s = lease_s
        self.now = 0.0
        self.steals = 0
        self.lost_s = 0.0
        self._left = len(pieces)
        self._rng = random.Random(len(pieces))
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._seconds: dict[str, float] = {}
        self.spools: dict[str, list[ClaimName]] = {}
        self.workers = [
            Worker(f"w{index}", card, "gpu0" if policy.shared else f"gpu{index}")
            for index, card in enumerate(cards)
        ]
        self._deal(pieces)
        for worker in self.workers:
            self._at(worker.card.joins + self._rng.uniform(0, 0.01), lambda w=worker: self._free(w))
            if worker.card.leaves < math.inf:
                self._at(worker.card.leaves, lambda w=worker: self._go(w))

    def run(self, at_most: float) -> float:
        """Return the makespan; infinite if claims wait for a worker that has left."""
        while self._left and self._events and self.now < at_most:
            self.now, _, event = heapq.heappop(self._events)
            event()
        return math.inf if self._left else self.now

    def _deal(self, pieces: Sequence[Piece]) -> None:
        weights = [w.card.weight if self.policy.weighted else 1.0 for w in self.workers]
        slots = assign([piece.cost for piece in pieces], weights)
        self.spools = {worker.spool: [] for worker in self.workers}
        for index, (piece, slot) in enumerate(zip(pieces, slots, strict=True)):
            # A FIFO takes the last of the list first.
            name = ClaimName(f"c{len(pieces) - index:06d}", piece.kind, piece.cost)
            self._seconds[name.id] = piece.seconds
            self.spools[self.workers[slot].spool].append(name)
        for spool in self.spools:
            self._order(spool)

    def _order(self, spool: str) -> None:
        """Put the claim to take first last."""
        names = self.spools[spool]
        self.spools[spool] = (
            sorted(names, key=str) if self.policy.shared else in_order(names, TASTE)
        )

    def _at(self, time: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time, len(self._events) + self._rng.randrange(10**9), event))

    def _free(self, worker: Worker) -> None:
        """Let a worker that runs nothing take something, or poll."""
        if worker.gone:
            return
        if self.now - worker.swept >= self.lease_s / 2 or worker.idle_polls:
            self._sweep(worker)
        found = self._next(worker)
        if found is None:
            if not (self.policy.stealing or self.policy.shared):
                return  # nothing comes into its own spool any more: it leaves
            worker.idle_polls += 1
            poll_s = POLL_S * self._rng.uniform(0.9, 1.1)
            wait_s = SECOND_LOOK_S if worker.idle_polls == 1 else poll_s
            self._at(self.now + wait_s, lambda: self._free(worker))
            return
        spool, name = found
        self.spools[spool].remove(name)
        self.steals += spool != worker.spool
        worker.idle_polls, worker.running, worker.home, worker.since = 0, name, spool, self.now
        end = self.now + self._seconds[name.id] / worker.card.speed + self._load(worker, name)
        self._at(end, lambda: self._done(worker, name))

    def _load(self, worker: Worker, name: ClaimName) -> float:
        """Return how long it takes a worker to load what a claim needs."""
        if not self.policy.load_s or name.kind in worker.loaded:
            return 0.0
        worker.loads += 1
        worker.cold = True
        worker.loaded |= {name.kind}
        return self.policy.load_s

    def _taste(self, worker: Worker) -> Preferences:
        if not self.policy.load_s or not self.policy.affinity:
            return TASTE
        held = held_by(self._peers_of(worker))
        return Preferences(loaded=worker.loaded, held=held)

    def _next(self, worker: Worker) -> tuple[str, ClaimName] | None:
        """Choose as `Stock.next` does."""
        own = self.spools[worker.spool]
        if self.policy.shared:
            return (worker.spool, own[-1]) if own else None
        preferences = self._taste(worker)
        spools = self.spools
        if self.policy.load_s:
            spools = {spool: in_order(names, preferences) for spool, names in self.spools.items()}
            own = spools[worker.spool]
        left_s = worker.card.leaves - self.now if not worker.card.dies else math.inf
        few = PLENTY if self.policy.stealing else 0
        if len(own) > few and not takes_too_long(own[-1], worker.rates, left_s):
            if not preferences.must_load(own[-1].kind):
                return worker.spool, own[-1]
        listings = spools if self.policy.stealing else {worker.spool: own}
        peers = list(self._peers_of(worker)) if self.policy.stealing else []
        found = choose(
            listings,
            peers,
            self._peer(worker),
            preferences,
            waited=worker.waited,
            time_left_s=left_s,
        )
        if found is None:
            best = (names[-1] for names in listings.values() if names)
            refused = {name.id: polls_for(name, peers, preferences) for name in best}
            worker.waited = worker.patience.left_alone(refused)
        return found

    def _peers_of(self, me: Worker) -> Iterator[Peer]:
        """Return whom a worker believes to live: the dead too, until their lease is ended."""
        for other in self.workers:
            if other is not me and other.card.joins <= self.now and not other.ended:
                yield self._peer(other)

    def _peer(self, worker: Worker) -> Peer:
        left = 0.0
        if worker.running is not None:
            last = min(self.now, worker.card.leaves)
            ran_s = (last - worker.since) // STATUS_S * STATUS_S
            rate = worker.rates.get(worker.running.kind, 0.0)
            left = max(0.0, worker.running.cost - ran_s * rate)
        card = worker.card
        kind = worker.running.kind if worker.running else ""
        loaded = worker.loaded if self.policy.affinity else ()
        return Peer(
            worker.id, card.weight, worker.rates, worker.spool, kind=kind, left=left, loaded=loaded
        )

    def _done(self, worker: Worker, name: ClaimName) -> None:
        if worker.gone or worker.running is not name:
            return
        worker.ran += 1
        if worker.ran > 1 and not worker.cold:  # a run that loaded its model gives no rate
            rate = name.cost / (self.now - worker.since)
            old = worker.rates.get(name.kind)
            mixed = rate if old is None else 0.7 * old + 0.3 * rate
            worker.rates = {**worker.rates, name.kind: mixed}
        worker.cold = False
        worker.running = None
        self._left -= 1
        if self._left:
            self._free(worker)

    def _go(self, worker: Worker) -> None:
        """Let a worker die, or put back what it has and leave."""
        worker.gone = True
        if worker.running is not None:
            self.lost_s += (self.now - worker.since) * worker.card.speed
        if not worker.card.dies:
            self._end(worker)

    def _sweep(self, worker: Worker) -> None:
        """End the leases of those whose beat this worker has not seen move for `lease_s`."""
        worker.swept = self.now
        for other in self.workers:
            if other.gone and not other.ended:
                since = worker.silent.setdefault(other.id, self.now)
                if self.now - since >= self.lease_s:
                    self._end(other)

    def _end(self, worker: Worker) -> None:
        worker.ended = True
        if worker.running is not None:
            self.spools[worker.home].append(worker.running)
            self._order(worker.home)
            worker.running = None


# ---- the tables ----


@dataclass(slots=True)
class Row:
    """What one policy did on all instances of a shape."""

    ratios: list[float] = field(default_factory=list)
    steals: int = 0
    loads: int = 0
    claims: int = 0

    def __str__(self) -> str:
        if not all(map(math.isfinite, self.ratios)):
            never = sum(not math.isfinite(ratio) for ratio in self.ratios)
            return f"never ends: {never} of {len(self.ratios)}"
        p95 = sorted(self.ratios)[math.ceil(0.95 * len(self.ratios)) - 1]
        mean = statistics.fmean(self.ratios)
        return f"{mean:.3f} / {p95:.3f} / {max(self.ratios):.3f}"


def measure(
    shape: str, count: int, *, wrong: bool, event: str, split: bool, lease_s: float
) -> dict[str, Row]:
    """Run every policy on the same instances."""
    rows = {name: Row() for name in POLICIES}
    for number in range(count):
        case = instance(shape, number, wrong=wrong, event=event)
        weights = [card.weight for card in case.cards]
        whole = [Piece(seconds, max(1, int(cost))) for seconds, cost in case.files]
        for name, policy in POLICIES.items():
            pieces = cut(case.files, weights) if split else whole
            best = bound(case.cards, pieces)
            run = Simulation(case.cards, pieces, policy, lease_s)
            rows[name].ratios.append(run.run(8 * best) / best)
            rows[name].steals += run.steals
            rows[name].claims += len(pieces)
    return rows


MODELS = {
    "ranked, left to workers with the model": Policy(weighted=True, stealing=True, load_s=LOAD_S),
    "no affinity": Policy(weighted=True, stealing=True, load_s=LOAD_S, affinity=False),
}


def measure_models(shape: str, count: int, *, patience: int, charge_s: float) -> dict[str, Row]:
    """Run instances whose claims are of two kinds, each to be loaded for LOAD_S.

    A claim is left to an idle worker that has its model for `patience` polls, and a load counts
    `charge_s` where workers estimate which would finish a claim first.
    """
    rows = {name: Row() for name in MODELS}
    policy_module.POLLS_FOR_IDLE, policy_module.LOAD_S = patience, charge_s
    for number in range(count):
        case = instance(shape, number, wrong=True, event="all are there")
        chance = random.Random(f"kinds {number}")
        part = chance.uniform(0.2, 0.8)
        pieces = [
            replace(piece, kind="x" if chance.random() < part else "y")
            for piece in cut(case.files, [card.weight for card in case.cards])
        ]
        best = bound(case.cards, pieces)
        for name, policy in MODELS.items():
            run = Simulation(case.cards, pieces, policy, 30.0)
            rows[name].ratios.append(run.run(8 * best + 1000) / best)
            rows[name].loads += sum(worker.loads for worker in run.workers)
            rows[name].claims += len(case.cards)
    policy_module.POLLS_FOR_IDLE, policy_module.LOAD_S = 2, LOAD_S
    return rows


def print_models(count: int) -> None:
    """Print what a worker does about claims whose model it lacks, and what that is worth."""
    print(f"\ntwo models, {LOAD_S:g} s to load one; weights wrong; all are there\n")
    print("| rule | equal | lognormal | loads a worker |\n|---|---|---|---|")
    rules = {
        "loads charged, an idle holder waited for 2 polls": (2, LOAD_S),
        "loads charged, an idle holder waited for 20 polls": (20, LOAD_S),
        "ranked by what is loaded, nothing left to others for it": (2, 0.0),
    }
    for rule, (patience, charge_s) in rules.items():
        tables = [
            measure_models(shape, count, patience=patience, charge_s=charge_s)
            for shape in ("equal", "lognormal")
        ]
        for name in MODELS if rule.startswith("ranked") else list(MODELS)[:1]:
            rows = [table[name] for table in tables]
            loads = sum(row.loads for row in rows) / sum(row.claims for row in rows)
            said = rule if name != "no affinity" else name
            print(f"| {said} | {rows[0]} | {rows[1]} | {loads:.2f} |")


def main() -> None:
    """Print the tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--instances", type=int, default=100, help="of each shape (default 100)")
    parser.add_argument("--lease", type=float, default=30.0, help="seconds (default 30)")
    parser.add_argument("--models", action="store_true", help="only that of two models")
    given = parser.parse_args()
    if not given.models:
        print_policies(given.instances, given.lease)
    print_models(given.instances)


def print_policies(count: int, lease_s: float) -> None:
    """Print what weights and stealing are worth, in all events."""
    shapes = ("equal", "lognormal", "heavy tail")
    for split in (True, False):
        for event in ("all are there", "joins late", "dies", "has a walltime"):
            if not split and event != "all are there":
                continue
            for wrong in (False, True):
                how = "claims cut by the planner" if split else "whole files"
                print(f"\n{how}; weights {'wrong' if wrong else 'right'}; {event}\n")
                print("| policy | " + " | ".join(shapes) + " | stolen |")
                print("|---|" + "---|" * (len(shapes) + 1))
                tables = [
                    measure(
                        shape,
                        count,
                        wrong=wrong,
                        event=event,
                        split=split,
                        lease_s=lease_s,
                    )
                    for shape in shapes
                ]
                for name in POLICIES:
                    rows = [table[name] for table in tables]
                    stolen = sum(row.steals for row in rows) / sum(row.claims for row in rows)
                    print(f"| {name} | " + " | ".join(map(str, rows)) + f" | {stolen:.0%} |")


if __name__ == "__main__":
    main()
