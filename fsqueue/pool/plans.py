"""Publish plans: every claim of a plan, even if its planner dies halfway.

A plan's claims are first *staged*: written and synced under plans/UID.staged/SPOOL/, where workers
do not look. Then the plan file takes the next free number by link(2), which has one winner. Only
then are the claims moved to their spools, each by one rename out of staging. So:

* two planners at once cannot both plan one input: the loser of a number reads the winner's plan,
  drops those inputs, and tries the next number. No lock is held, so a paused planner blocks none;
* a planner that dies halfway leaves staged claims behind, and any process completes them by the
  same renames (`complete`): a name leaves staging once, whichever process moves it;
* a planner that dies before it has a number leaves staged files that no plan names: no claims.

A plan file is one JSON document with one source or claim per line: its first line has the totals,
and reading a million claims takes no memory.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

from fsqueue.errors import FsqueueError, PoolError
from fsqueue.pool import claims
from fsqueue.pool.layout import FORMAT, SUFFIX
from fsqueue.pool.leases import ABSENT_LOOKS
from fsqueue.pool.names import ID, KIND, PRIORITY_MAX, SPOOL, ClaimName, id_and_cost
from fsqueue.pool.requirements import CAPABILITY
from fsqueue.pool.settings import PoolDirectory
from fsqueue.storage import atomic, directories
from fsqueue.storage.name_sets import NameList
from fsqueue.storage.untrusted import number

HEAD_MAX: Final = 1 << 24
ROW_MAX: Final = 1 << 20
_PLAN: Final = re.compile(r"([0-9]{6,9})\.json", re.ASCII)
_ROW: Final = re.compile(rb'\["([ -!#-\[\]-~]+)", "([ -!#-\[\]-~]+)"\]')  # JSON escapes none
_ROW_ID: Final = re.compile(rb'^\["([!#-,/-\[\]-~-]+)\.', re.MULTILINE)  # an id has no dot
BLOCK_BYTES: Final = 1 << 20


@dataclass(slots=True)
class Share:
    """What a plan assigns to one spool, or to all together."""

    claims: int = 0
    cost: int = 0
    measures: dict[str, int] = field(default_factory=dict)

    def add(self, cost: int, measures: dict[str, int], claims: int = 1) -> None:
        """Add more claims to this share."""
        self.claims += claims
        self.cost += cost
        for name, count in measures.items():
            self.measures[name] = self.measures.get(name, 0) + count


@dataclass(frozen=True, slots=True)
class Plan:
    """The head of a plan file."""

    uid: str
    created: str
    handler: str
    kinds: tuple[str, ...]
    suffix: str | None
    total: Share
    spools: dict[str, Share]
    options: dict[str, Any]
    cost_max: int | None = None
    """How expensive a claim could be; None in the plans of earlier versions."""
    timeout_s: float = 0.0
    """How long a run of one of its claims may take; 0: any time."""
    priority: int = 0
    retry_requires: str = ""


def numbers(pool: PoolDirectory) -> list[int]:
    """Return the numbers of all plans, ascending.

    Plans are numbered without gaps, so a gap means that a listing of a busy directory missed one,
    and what it planned would be planned again: then look again (R13), as no file is removed.
    """
    seen: set[int] = set()
    for _ in range(ABSENT_LOOKS):
        found = map(_PLAN.fullmatch, atomic.names(pool.directory("plans")))
        seen.update(int(match[1]) for match in found if match)
        if len(seen) == max(seen, default=0):
            break
    return sorted(seen)


def read_plan(pool: PoolDirectory, number: int) -> Plan:
    """Return the head of a plan; PoolError if the file was damaged."""
    path = pool.plan(number)
    try:
        with os.fdopen(atomic.open_for_reading(path)[0], "rb") as file:
            facts = json.loads(file.readline(HEAD_MAX).rstrip().rstrip(b",") + b"}")
        return _head(facts)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise PoolError(
            f"{path} is not a plan ({error}): it was edited or damaged. Its claims are intact; "
            f"restore the file, or plan its inputs into a new pool."
        ) from error


def _head(facts: dict[str, Any]) -> Plan:
    """Parse a plan's head. Raises ValueError, KeyError, TypeError or AttributeError."""
    if facts["format"] != FORMAT:
        raise ValueError(f"format {facts['format']!r}")
    plan = Plan(
        facts["plan"],
        facts["created"],
        facts["handler"],
        tuple(facts["kinds"]),
        facts["suffix"],
        _read_share(facts["total"]),
        {name: _read_share(share) for name, share in facts["spools"].items()},
        facts["options"],
        facts.get("cost_max"),
        max(0.0, number(facts.get("timeout_s")) or 0.0),
        facts.get("priority", 0),
        facts.get("retry_requires", ""),
    )
    valid = (
        ID.fullmatch(plan.uid)
        and (plan.suffix is None or SUFFIX.fullmatch(plan.suffix))
        and all(map(SPOOL.fullmatch, plan.spools))
        and all(map(KIND.fullmatch, plan.kinds))
        and isinstance(plan.created, str)
        and isinstance(plan.handler, str)
        and isinstance(plan.options, dict)
        and (plan.cost_max is None or type(plan.cost_max) is int)
        and plan.priority in range(PRIORITY_MAX + 1)
        and (plan.retry_requires == "" or CAPABILITY.fullmatch(plan.retry_requires))
    )
    if not valid:
        raise ValueError("its first line is not valid")
    return plan


def _read_share(facts: dict[str, Any]) -> Share:
    share = Share(facts["claims"], facts["cost"], dict(facts["measures"]))
    if not all(type(n) is int for n in (share.claims, share.cost, *share.measures.values())):
        raise ValueError("its totals are not numbers")
    return share


def read_plans(pool: PoolDirectory) -> list[Plan]:
    """Return the heads of all plans, oldest first."""
    return [read_plan(pool, number) for number in numbers(pool)]


def read_sources(pool: PoolDirectory, number: int) -> Iterator[str]:
    """Yield the keys of the inputs that a plan holds."""
    return (key for key, _ in _entries(pool, number, "sources"))


def read_inputs(pool: PoolDirectory, number: int) -> Iterator[str]:
    """Yield the paths of the inputs that a plan holds, in the order in which they were given."""
    return (path for _, path in _entries(pool, number, "sources"))


def read_keyed_inputs(pool: PoolDirectory, number: int) -> Iterator[tuple[str, str]]:
    """Yield the key and the path of each input that a plan holds, in the order given."""
    return ((key, path) for key, path in _entries(pool, number, "sources"))


def read_claims(pool: PoolDirectory, number: int) -> Iterator[tuple[ClaimName, str]]:
    """Yield every claim that a plan holds, with the spool it was given to."""
    for text, spool in read_names(pool, number):
        if name := ClaimName.parse(text):
            yield name, spool


def read_names(pool: PoolDirectory, number: int) -> Iterator[list[str]]:
    """Yield the name of every claim that a plan holds, and the spool it was given to, as texts."""
    for entry in _entries(pool, number, "claims"):
        if not (id_and_cost(entry[0], owned="@" in entry[0]) and SPOOL.fullmatch(entry[1])):
            raise PoolError(
                f"{pool.plan(number)} holds {entry!r}, which is not a claim. Restore it."
            )
        yield entry


def read_ids(pool: PoolDirectory, number: int, planned: int) -> Iterator[list[str]]:
    """Yield the ids of the `planned` claims that a plan holds, many at a time.

    It takes a sixth of the time of `read_names`, which has the last word if anything looks wrong.
    """
    found = 0
    with os.fdopen(atomic.open_for_reading(pool.plan(number))[0], "rb") as file:
        while (line := file.readline(HEAD_MAX)) and line != b'"claims":[\n':
            pass
        while block := file.read(BLOCK_BYTES):
            ids = _ROW_ID.findall(block + file.readline(ROW_MAX))
            found += len(ids)
            yield b"\n".join(ids).decode().split("\n") if ids else []
    if found != planned:
        yield [text.partition(".")[0] for text, _spool in read_names(pool, number)]


def _entries(pool: PoolDirectory, number: int, wanted: str) -> Iterator[list[str]]:
    path, section, text = pool.plan(number), "", b""
    with os.fdopen(atomic.open_for_reading(path)[0], "rb") as file:
        file.readline(HEAD_MAX)
        while line := file.readline(ROW_MAX):
            text = line.strip().rstrip(b",")
            if row := _ROW.fullmatch(text):
                if section == wanted:
                    yield [row[1].decode(), row[2].decode()]
            elif text.startswith(b"["):
                try:
                    entry = json.loads(text.decode())
                    if len(entry) != 2 or not all(isinstance(part, str) for part in entry):
                        raise ValueError("not two texts")
                except (ValueError, RecursionError) as error:
                    raise PoolError(f"{path} is damaged ({error}); restore it.") from error
                if section == wanted:
                    yield entry
            elif match := re.fullmatch(rb'"(\w+)":\[', text):
                section = match[1].decode()
        if text != b"]}":
            raise PoolError(f"{path} ends in the middle; it was truncated. Restore it.")


def write_plan(
    pool: PoolDirectory,
    plan: Plan,
    sources: Iterable[tuple[str, str]],
    names: Iterable[tuple[str, str]],
) -> str:
    """Write a plan under a private name, synced; return that name for `number_plan`.

    `sources` are (key, path) and `names` are (claim, spool).
    """
    path = private_path(pool, plan.uid)
    facts = {
        "format": FORMAT,
        "plan": plan.uid,
        "created": plan.created,
        "handler": plan.handler,
        "kinds": plan.kinds,
        "suffix": plan.suffix,
        "total": _share(plan.total),
        "spools": {name: _share(share) for name, share in plan.spools.items()},
        "options": plan.options,
        "cost_max": plan.cost_max,
        **({"timeout_s": plan.timeout_s} if plan.timeout_s else {}),
        **({"priority": plan.priority} if plan.priority else {}),
        **({"retry_requires": plan.retry_requires} if plan.retry_requires else {}),
    }
    parts = (
        (f'{json.dumps(facts)[:-1]},\n"sources":[\n',),
        _rows(sources),
        ('\n],\n"claims":[\n',),
        _rows(names),
        ("\n]}\n",),
    )
    atomic.stage(path, (text.encode() for part in parts for text in part))
    return path


def _rows(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yield the lines of one section, many at a time: a write for each would be slow."""
    separator, rows = "", iter(rows)
    while batch := list(islice(rows, 1000)):
        yield separator + ",\n".join(map(json.dumps, batch))
        separator = ",\n"


def _share(share: Share) -> dict[str, Any]:
    return {"claims": share.claims, "cost": share.cost, "measures": share.measures}


def private_path(pool: PoolDirectory, uid: str) -> str:
    """Return where a plan file is until it has a number."""
    return f"{pool.directory('plans')}/.{uid}.json"


def forbid(pool: PoolDirectory, uid: str) -> None:
    """Prevent a plan without a number from ever getting one, whatever its planner still does."""
    while True:
        directories.make(private_path(pool, uid))
        try:
            atomic.discard(private_path(pool, uid))
        except IsADirectoryError:
            return
        # RACE: its planner's file was there and is removed now, or was just written: try again


@contextmanager
def unless_forbidden(pool: PoolDirectory, uid: str) -> Iterator[None]:
    """Explain an error before a plan has its number, if the plan was removed as abandoned."""
    try:
        yield
    except (OSError, FsqueueError) as error:
        if os.path.isdir(private_path(pool, uid)):
            raise PoolError(
                f"{pool.staged(uid)} was removed by fsqueue clean, because nothing was added to it "
                f"for a lease, as if its planner had died. Was this process stopped? Plan again."
            ) from error
        raise


def number_plan(pool: PoolDirectory, uid: str, path: str, number: int) -> bool:
    """Give a private plan file this number; False if another plan has it."""
    if atomic.commit(path, pool.plan(number), keep=True):
        return True
    if read_plan(pool, number).uid != uid:
        return False
    # RACE: it is ours after all; the reply was lost, and this mount does not show link counts.
    atomic.discard(path)
    return True


def complete(pool: PoolDirectory, listed: Collection[str] | None = None) -> int:
    """Publish every staged claim of a numbered plan; return how many this call moved.

    Any process may call it at any time, however often. `listed`: the names in plans/, if known.
    """
    if listed is None:
        listed = atomic.names(pool.directory("plans"))
    staged = {name.removesuffix(".staged") for name in listed if name.endswith(".staged")}
    if not staged:
        return 0
    ready = sorted(staged & {plan.uid for plan in read_plans(pool)})
    if ready:
        # Its planner may have died before this: no claim may survive a power loss without its plan.
        atomic.sync_directory(pool.directory("plans"))
    return sum(complete_one(pool, uid) for uid in ready)


def complete_one(pool: PoolDirectory, uid: str) -> int:
    """Publish what is left of one staged plan."""
    moved = 0
    directory = pool.staged(uid)
    for spool in filter(SPOOL.fullmatch, _left_in(directory)):
        names = map(ClaimName.parse, _left_in(f"{directory}/{spool}"))
        moved += sum(claims.publish(pool, uid, spool, n) for n in names if n and n.owner is None)
        atomic.sync_directory(pool.spool(spool))
        directories.discard_empty(f"{directory}/{spool}")
    directories.discard_empty(directory)
    return moved


def _left_in(directory: str) -> NameList:
    try:
        return atomic.gather(directory, lambda texts: NameList(filter(str.isprintable, texts)))
    except (PoolError, OSError) as error:
        if getattr(error.__cause__ or error, "errno", None) not in atomic.GONE:
            raise
        # RACE: another process completed it, and removed the empty directory.
        return NameList()
