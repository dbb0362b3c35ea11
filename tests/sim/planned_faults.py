"""Faults planned for one operation, where chance would need thousands of scenarios.

A planned fault names a moment of the protocol, such as the rename that takes a claim, and what
happens to the first, second or third process that comes to it. A scene is a scenario around a few.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Final

from tests.sim.mount import LAGGING_NFS, LOCAL
from tests.sim.nuisances import Nuisances
from tests.sim.world import Table

MOMENTS: Final = {
    "stage a claim": ("create", r"\.staged/"),
    "number a plan": ("link", r"/plans/[0-9]+\.json$"),
    "sync the plans": ("fsync", r"/plans$"),
    "publish a claim": ("rename", r"\.staged/"),
    "sync a spool": ("fsync", r"/spools/[^./]+$"),
    "enlist": ("link", r"/workers/"),
    "take": ("rename", r"/running/[^ ]+$"),
    "write an output": ("write", r"/outputs/\."),
    "publish an output": ("link", r"/outputs/[^ .][^ ]*$"),
    "sync the outputs": ("fsync", r"/outputs$"),
    "finish": ("rename", r"/done/"),
    "fail": ("rename", r"/running/.* .*/failed/"),
    "put back": ("rename", r"/running/.* .*/spools/"),
    "record an error": ("link", r"/errors/[^ .][^ ]*$"),
    "renew": ("rename", r"\.b[0-9]+ .*\.b[0-9]+$"),
    "end a lease": ("rename", r"\.dead@"),
    "list the leases": ("list", r"/workers$"),
    "retire": ("rename", r"\.left$"),
    "retry": ("rename", r"/failed/.* .*/spools/"),
    "cancel": ("rename", r"/spools/.* .*/failed/"),
    "read a claim": ("open", r"/running/[^ /]+$"),
    "list a spool": ("list", r"/spools/[^./]+$"),
    "list what runs": ("list", r"/running$"),
    "look for an output": ("stat", r"/outputs/\.[^/]+/"),
    "tidy up": ("rmdir", r"/(outputs/\.|partial/)"),
}
"""Operations that decide something: what is done, and a pattern of the paths, joined by spaces."""

ANY: Final = -1
"""One of the first three, chosen by the seed."""
BEFORE: Final = ("crash", "ghost", "pause", "long pause", "coma", "overtaken", "power cut")
DURING: Final = ("interrupt", "hang", "lost", "again", "stale", "error", "full", "timed out")
DURING_SCENES: Final = ("stuck", "debris", "error and asked")
"""Only in scenes: they happen to one kind of operation, or need a worker's second thread."""
SIGNAL: Final = "signal"
"""Also before the operation."""
_PATTERNS: Final = {name: (what, re.compile(path)) for name, (what, path) in MOMENTS.items()}


@dataclass(slots=True)
class PlannedFault:
    """What happens to the `nth` process that comes to a moment, counted from 0."""

    moment: str
    kind: str
    nth: int = 0

    @classmethod
    def random(cls, rng: Random) -> PlannedFault:
        """Choose one."""
        kinds = BEFORE[:3] + DURING
        return cls(rng.choice(tuple(MOMENTS)), rng.choice(kinds), rng.choice((0, 0, 0, 1, 2)))

    def numbered(self, rng: Random) -> PlannedFault:
        """Return a copy whose `nth` is a number."""
        nth = rng.randrange(3) if self.nth == ANY else self.nth
        return PlannedFault(self.moment, self.kind, nth)

    def is_due(self, what: str, paths: tuple[Any, ...], overdue: Callable[[], bool]) -> bool:
        """Return whether this operation is the one; called once for every operation.

        An operation is overtaken only if its process has just done the same, while a process sleeps
        whose lease has expired.
        """
        wanted, pattern = _PATTERNS[self.moment]
        if what != wanted or not pattern.search(" ".join(paths)):
            return False
        if self.kind == "overtaken" and not overdue():
            return False
        self.nth -= 1
        return self.nth == -1


def _zombie(*moments: str, **how: Any) -> dict[str, Any]:
    """Return a scene in which one worker sleeps for longer than its lease while others watch."""
    return {
        "traits": LOCAL,
        "planned_faults": tuple(PlannedFault(moment, "long pause") for moment in moments),
        "lease_s": 8.0,
        "faulty_s": 60.0,
        "hosts": 3,
        "workers": 3,
        "linger": 4.0,
    } | how


def _calm(*planned_faults: PlannedFault, **how: Any) -> dict[str, Any]:
    """Return a scene on a local disk in which workers go on for a while."""
    calm = {"traits": LOCAL, "lease_s": 8.0, "faulty_s": 60.0, "workers": 3, "linger": 4.0}
    return calm | {"planned_faults": planned_faults} | how


def _some(moment: str, *kinds: str) -> tuple[PlannedFault, ...]:
    """Return each kind at this moment, one after the other."""
    return tuple(PlannedFault(moment, kind, nth) for nth, kind in enumerate(kinds))


MISSING_NAMES: Final = replace(LOCAL, name="a busy disk", omits=0.15)
LONG: Final = ("a.160.slow", "b.160.slow", "c.160.slow")
GOOD: Final = ("a.5.ok", "b.20.ok", "c.5.saves")
BAD: Final = ("v.160.fails", "w.160.impossible", "x.80.fails", "y.80.errs", "z.40.fails")

SCENES: Final[dict[str, dict[str, Any]]] = {
    "a take succeeds and its reply is lost": {
        "traits": LAGGING_NFS,
        "planned_faults": (PlannedFault("take", "lost"), PlannedFault("take", "lost", 1)),
        "linger": 4.0,
    },
    "the reply of a finish is lost": {
        "traits": LOCAL,
        "planned_faults": (PlannedFault("finish", "lost"), PlannedFault("finish", "lost", 1)),
    },
    "a take is done, and reported as an I/O error": {
        "traits": LOCAL,
        "planned_faults": (PlannedFault("take", "error"), PlannedFault("take", "error", 1)),
    },
    "two signals come while a claim is taken": {
        "traits": LOCAL,
        "planned_faults": (PlannedFault("take", "interrupt"), PlannedFault("take", "interrupt", 1)),
    },
    "a take is reported as an I/O error as a signal comes": {
        "traits": LOCAL,
        "planned_faults": (
            PlannedFault("take", "error and asked"),
            PlannedFault("take", "error and asked", 1),
        ),
    },
    "a zombie publishes": _zombie("publish an output"),
    "a zombie finishes": _zombie("finish"),
    "a zombie takes": _zombie("take"),
    "a zombie wakes while it is declared dead": _zombie("write an output", "end a lease"),
    "a zombie in a long claim wakes while it is declared dead": _zombie(
        planned_faults=(
            PlannedFault("renew", "long pause", 8),
            PlannedFault("end a lease", "long pause"),
        ),
        inputs=("a.160.slow", "b.160.slow"),
    ),
    "a zombie wakes before it is declared dead": _zombie(
        planned_faults=(
            PlannedFault("renew", "coma", 5),
            PlannedFault("list the leases", "overtaken", ANY),
        ),
        inputs=("a.160.slow", "b.160.slow"),
    ),
    "a planner dies between number and spools": {
        "planned_faults": (PlannedFault("publish a claim", "crash"),),
        "faults_from_start": True,
        "planners": 2,
        "planner_returns": False,
    },
    "the power fails when a plan has its number": {
        "planned_faults": (PlannedFault("publish a claim", "power cut"),),
        "faults_from_start": True,
        "selective": True,
    },
    "the power fails when a claim is done": {
        "planned_faults": (PlannedFault("finish", "power cut"),),
        "selective": True,
    },
    "the mount fails while handlers write": _calm(
        *_some("write an output", "error", "stale", "timed out"), inputs=GOOD
    ),
    "the mount fails when an output is looked for": _calm(
        *_some("look for an output", "error", "stale", "timed out", "error"), inputs=GOOD
    ),
    "the mount fails while workers look for work": _calm(
        *_some("list a spool", "timed out", "error", "error"),
        *_some("list what runs", "error", "timed out"),
        *_some("read a claim", "error", "timed out"),
        inputs=GOOD,
    ),
    "bad inputs come first": _calm(
        inputs=BAD + GOOD, workers=1, attempts_max=1, spools=("gpu0",), faults_from_start=False
    ),
    "debris cannot be removed": _calm(
        *_some("tidy up", "debris", "debris", "debris", "debris"),
        inputs=("a.20.litters", "b.20.litters", "c.5.halves"),
        attempts_max=2,
    ),
    "a claim is longer than every time limit": _calm(
        inputs=("a.160.slow", "b.160.slow", *GOOD), time_limit=0.6, spools=("gpu0",), workers=2
    ),
    "signals come while handlers write": _calm(
        *(PlannedFault("write an output", "signal", nth) for nth in (0, 2, 4, 6)), inputs=GOOD
    ),
    "a worker dies while it leaves": _calm(
        PlannedFault("renew", "signal", 2),
        PlannedFault("put back", "crash"),
        inputs=LONG,
        planner_returns=True,
    ),
    "a main thread is stuck": _calm(
        *(PlannedFault("list a spool", "stuck", nth) for nth in (1, 3)),
        *(PlannedFault("take", "stuck", nth) for nth in (1, 3)),
        inputs=GOOD,
    ),
    "renewals hang": _calm(
        *(PlannedFault("renew", "hang", nth) for nth in (2, 4, 6, 8)), inputs=LONG, hosts=1
    ),
    "replies to renewals are lost in a busy directory": _calm(
        *(PlannedFault("renew", "lost", nth) for nth in range(1, 16, 2)),
        inputs=LONG,
        traits=MISSING_NAMES,
    ),
    "claims fail in a busy directory": _calm(
        inputs=(*BAD, *GOOD), traits=MISSING_NAMES, attempts_max=3
    ),
    "three plan beside a busy directory": _calm(
        inputs=(*BAD, *GOOD), traits=MISSING_NAMES, planners=3, faults_from_start=True
    ),
    "workers end while others plan": _calm(
        PlannedFault("number a plan", "long pause"),
        PlannedFault("number a plan", "long pause", 1),
        inputs=("a.400.slow", "b.5.ok", "c.5.ok", "d.5.ok"),
        planners=4,
        faults_from_start=False,
        linger=0.1,
    ),
    "/proc hides other processes": _calm(
        inputs=LONG, hosts=1, nuisances=Nuisances(tables=(Table.HIDDEN,))
    ),
    "/proc is the outer one": _calm(
        inputs=LONG, hosts=1, nuisances=Nuisances(tables=(Table.OUTER,))
    ),
    "hosts are clones": _calm(inputs=LONG, hosts=3, nuisances=Nuisances(cloned=True)),
    "one worker dies and another is busy": _calm(
        inputs=("a.400.slow", "b.80.kills"), spools=("gpu0",), workers=2, faulty_s=150.0
    ),
    "workers with guardians are killed": _calm(
        inputs=("a.20.kills", "b.20.kills", *GOOD),
        nuisances=Nuisances(guarded=True),
        attempts_max=3,
    ),
    "a handler cannot be interrupted": _calm(
        inputs=("a.20.deaf", *GOOD), nuisances=Nuisances(guarded=True), faulty_s=400.0
    ),
    "a waiting claim is purged": _calm(
        inputs=(*LONG, *GOOD), nuisances=Nuisances(purges=1), workers=1
    ),
    "attempts leave half an output behind": {
        "inputs": ("a.5.halves", "b.20.halves", "c.5.ok"),
        "attempts_max": 3,
    },
}
"""What each scene sets in an otherwise random scenario without any other faults."""
