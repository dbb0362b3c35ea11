"""Parse and format every name that carries state: of claims, leases, workers and spools.

A claim's name is `id.kind.cCOST.aATTEMPT.rRETURNS[.pPRIORITY][.vVAIN][@owner]`, for example

    output_12-5c1f09ab33.esm2_t6_8m.c81920.a0.r0@node7-31415-a3f9b2

* `id`       identifies the work: a readable stem and a hash of all that decides the result
* `kind`     what a worker must have loaded to do it; chosen by the handler
* `cost`     estimated work, a whole number in the handler's unit; thieves choose by it
* `attempt`  raised by every failure, and by nothing else
* `returns`  raised by every return to waiting, so that no waiting name is ever used twice
* `priority` 1 to 9, absent if 0: claims of a higher one are taken first; as it was planned
* `vain`     how many times in a row it was put back although its run saved nothing; absent if 0.
             Such claims are taken last, so one that is too long for every worker delays no other
* `owner`    who runs it; present in running/, done/ and failed/, absent while it waits

Properties: at most 255 bytes; only ASCII letters, digits, `_`, `-` and the separators `.` and `@`,
so a name joined to a directory stays inside it; a name parses in exactly one way, and formatting
what was parsed gives the same bytes back. Names that begin with `.` are private and half-written,
and nothing here parses them.
"""

from __future__ import annotations

import os
import re
import secrets
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import lru_cache
from typing import Final

SPOOL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}", re.ASCII)
ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}", re.ASCII)
KIND: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}", re.ASCII)
WORKER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,79}", re.ASCII)
COST_MAX: Final = 10**18 - 1
ATTEMPT_MAX: Final = 9_999
RETURNS_MAX: Final = 999_999
PRIORITY_MAX: Final = 9
VAIN_MAX: Final = 99
VAIN_RUNS_MAX: Final = 3
"""A claim that was put back in vain so often is reported, and needs a worker with more time."""
WORKER_ID_DASHES: Final = 2

_WAITING: Final = re.compile(
    rf"({ID.pattern})\.({KIND.pattern})"
    r"\.c(0|[1-9][0-9]{0,17})\.a(0|[1-9][0-9]{0,3})\.r(0|[1-9][0-9]{0,5})"
    r"(?:\.p([1-9]))?(?:\.v([1-9][0-9]?))?",
    re.ASCII,
)
_OWNED: Final = re.compile(rf"{_WAITING.pattern}@({WORKER.pattern})", re.ASCII)
_CLAIM: Final = re.compile(rf"{_WAITING.pattern}(?:@({WORKER.pattern}))?", re.ASCII)
_LEASE: Final = re.compile(
    rf"({WORKER.pattern})\.(?:left|(leaving-)?"
    rf"(?:b([0-9]{{6}}|[1-9][0-9]{{6,11}})|dead@({WORKER.pattern})))",
    re.ASCII,
)


@dataclass(slots=True, unsafe_hash=True)
class ClaimName:
    """A claim's name, parsed. See the module docstring for the grammar.

    It never changes. mypy enforces that by `Final`; `frozen` would cost seven calls per name.
    """

    id: Final[str]
    kind: Final[str]
    cost: Final[int]
    attempt: Final[int] = 0
    returns: Final[int] = 0
    owner: Final[str | None] = None
    vain: Final[int] = 0
    priority: Final[int] = 0
    _text: str = field(default="", init=False, repr=False, compare=False)
    """The name as text, once it is known to be valid: it is needed six times per claim."""

    @classmethod
    def parse(cls, text: str) -> ClaimName | None:
        """Return the parts of `text`, or None if it is not a claim's name."""
        if (match := _CLAIM.fullmatch(text)) is None:
            return None
        id, kind, cost, attempt, returns, priority, vain, owner = match.groups()
        numbers = int(cost), int(attempt), int(returns)
        name = cls(id, kind, *numbers, owner, int(vain or 0), int(priority or 0))
        name._text = text
        return name

    def __str__(self) -> str:
        return self._text or self._format()

    def _format(self) -> str:
        priority = f".p{self.priority}" if self.priority else ""
        vain = f"{priority}.v{self.vain}" if self.vain else priority
        tail = vain if self.owner is None else f"{vain}@{self.owner}"
        return f"{self.id}.{self.kind}.c{self.cost}.a{self.attempt}.r{self.returns}{tail}"

    @property
    def is_spent(self) -> bool:
        """Whether it was put back so often that no further waiting name is left for it."""
        return self.attempt >= ATTEMPT_MAX or self.returns >= RETURNS_MAX

    def checked(self) -> str:
        """Return the name as text; a name that would not parse is a bug here."""
        if not self._text:
            text = self._format()
            assert _CLAIM.fullmatch(text), text
            self._text = text
        return self._text

    def owned_by(self, worker: str) -> ClaimName:
        """Return the name this claim has while `worker` runs it."""
        name = ClaimName(
            self.id,
            self.kind,
            self.cost,
            self.attempt,
            self.returns,
            worker,
            self.vain,
            self.priority,
        )
        if self._text and self.owner is None and _is_worker(worker):
            name._text = f"{self._text}@{worker}"
        return name

    def returned(self, *, failed: bool, vain: bool = False) -> ClaimName:
        """Return the next waiting name, never used before; one attempt later if this one failed.

        `vain`: nothing came of the run that ends. Any other return, also by a failure, starts that
        count anew.
        """
        return replace(
            self,
            attempt=self.attempt + failed,
            returns=self.returns + 1,
            vain=min(self.vain + 1, VAIN_MAX) if vain else 0,
            owner=None,
        )


@lru_cache(maxsize=8)
def _is_worker(text: str) -> bool:
    return WORKER.fullmatch(text) is not None


def is_waiting(text: str) -> bool:
    """Return whether `text` is the name of a waiting claim."""
    return _WAITING.fullmatch(text) is not None


def vain_of(text: str) -> int:
    """Return how often in a row the waiting claim of this name was put back in vain."""
    vain = text.rpartition(".")[2]
    return int(vain[1:]) if vain[0] == "v" else 0


def priority_of(text: str) -> int:
    """Return the priority of the waiting claim of this name."""
    head, _, last = text.rpartition(".")
    if last[0] == "v":
        last = head.rpartition(".")[2]
    return int(last[1:]) if last[0] == "p" else 0


def id_and_cost(text: str, *, owned: bool) -> tuple[str, int] | None:
    """Return a claim's id and cost; None if `text` is not the name of an owned, or waiting, claim.

    For counting a million names: it takes a quarter of the time of `ClaimName.parse`.
    """
    match = (_OWNED if owned else _WAITING).fullmatch(text)
    return None if match is None else (match[1], int(match[3]))


@dataclass(frozen=True, slots=True)
class LeaseName:
    """The name of a worker's lease.

    `ID.b000412` while it lives, `ID.leaving-b000413` from when it began to leave; `ID.left` or
    `ID.dead@RECOVERER` once it has ended, `ID.leaving-dead@RECOVERER` if it ended while leaving.
    """

    worker: str
    beat: int | None = None
    ended_by: str | None = None
    leaving: bool = False

    @classmethod
    def parse(cls, text: str) -> LeaseName | None:
        """Return the parts of `text`, or None if it is not a lease's name."""
        if (match := _LEASE.fullmatch(text)) is None:
            return None
        worker, leaving, beat, recoverer = match.groups()
        return cls(worker, None if beat is None else int(beat), recoverer, leaving is not None)

    def __str__(self) -> str:
        leaving = "leaving-" if self.leaving else ""
        if self.beat is not None:
            return f"{self.worker}.{leaving}b{self.beat:06d}"
        if self.ended_by:
            return f"{self.worker}.{leaving}dead@{self.ended_by}"
        return f"{self.worker}.left"

    @property
    def living(self) -> bool:
        """Whether the lease has not ended."""
        return self.beat is not None

    @property
    def excuses(self) -> bool:
        """Whether its worker is not to blame for what it still holds: it left, or was leaving."""
        return self.leaving or (self.beat is None and self.ended_by is None)

    def following(self, *, leaving: bool = False) -> LeaseName:
        """Return the name of the next beat. Once a lease says leaving, it goes on saying so."""
        return LeaseName(self.worker, (self.beat or 0) + 1, leaving=self.leaving or leaving)

    def dead(self, ender: str) -> LeaseName:
        """Return the name it has once `ender` has ended it from this beat."""
        return LeaseName(self.worker, ended_by=ender, leaving=self.leaving)


class Role(StrEnum):
    """What kind of process an id belongs to. The values are the prefixes of the ids."""

    WORKER = ""
    RETRY = "retry-"
    CANCEL = "cancel-"
    RECOVER = "recover-"
    BROADCAST = "broadcast-"
    SUPERSEDE = "superseded-"
    FORGET = "forgotten-"


def new_worker_id(role: Role = Role.WORKER) -> str:
    """Return an id that no other process has had or will have: role, host, pid, random part."""
    return f"{role}{_host()}-{os.getpid()}-{secrets.token_hex(3)}"


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9_]", "_", os.uname().nodename)[:40].strip("_") or "host"


def is_of_this_host(id: str) -> bool:
    """Return whether the process with this id may be of this host; another may have its name."""
    return id.removeprefix(role_of(id)).startswith(f"{_host()}-")


def pid_of(id: str) -> int | None:
    """Return the pid of the process with this id, on its host; None if the id does not show it."""
    text = id.split("-")[-2] if id.count("-") >= WORKER_ID_DASHES else ""
    return int(text) if text.isascii() and text.isdecimal() else None


def host_of(worker: str) -> str:
    """Return the host's part of a worker's id, as `new_worker_id` wrote it."""
    return worker.rsplit("-", WORKER_ID_DASHES)[0]


def role_of(id: str) -> Role:
    """Return the role of the process with this id.

    A host may be called `cancel`, so the prefix counts only before a whole worker's id.
    """
    for role in Role:
        if role and id.startswith(role) and id.count("-") >= WORKER_ID_DASHES + 1:
            return role
    return Role.WORKER


def is_given_up(text: str) -> bool:
    """Return whether the claim with this name in failed/ was superseded or forgotten."""
    owner = text.partition("@")[2]
    given_up = owner.startswith((Role.SUPERSEDE, Role.FORGET))
    return given_up and role_of(owner) in (Role.SUPERSEDE, Role.FORGET)


def is_superseded(text: str) -> bool:
    """Return whether the claim with this name in failed/ was superseded."""
    return role_of(text.partition("@")[2]) is Role.SUPERSEDE


def slug(text: str, length: int = 60) -> str:
    """Return `text` in a form that is valid in an id: readable, ASCII, never empty."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", text)[:length].strip("_-") or "x"


def natural(text: str) -> list[tuple[int, int, str]]:
    """Return a sort key that puts gpu2 before gpu10."""
    return [
        (0, int(part), "") if part.isdecimal() else (1, 0, part)
        for part in re.split(r"(\d+)", text)
        if part
    ]
