"""Find one claim, or the claims of an input: where, since when, what went wrong, and why it waits.

For people, not for decisions: places come from directories and are right at the moment they were
listed; times, reasons and forecasts come from journals and statuses (I8).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from fsqueue.errors import FsqueueError
from fsqueue.handler import Handler, load_handler
from fsqueue.pool import claims, plans
from fsqueue.pool.layout import ORDER, Order, State, order_name
from fsqueue.pool.leases import lease_names
from fsqueue.pool.names import ClaimName, is_superseded
from fsqueue.pool.reader import ClaimView, PoolReader
from fsqueue.pool.requirements import lacks
from fsqueue.pool.settings import PoolDirectory, spool_names
from fsqueue.records.journal import read_events
from fsqueue.records.status import LEAVING, Status, read_status
from fsqueue.scheduling.choose import Preferences, Race, in_order
from fsqueue.scheduling.peers import peer_of
from fsqueue.storage import atomic
from fsqueue.storage.untrusted import read_json


@dataclass(frozen=True, slots=True)
class Place:
    """Where a claim is: a path below the pool, its state, and the spool it waits in."""

    path: str
    state: str
    name: ClaimName
    spool: str | None = None


@dataclass(frozen=True, slots=True)
class Taker:
    """A living worker, whether it may take the claim, and why it has not."""

    worker: str
    may: bool
    why: str


@dataclass(slots=True)
class Location:
    """What is known about one claim; `since` is when it arrived at its place."""

    id: str
    places: list[Place] = field(default_factory=list)
    since: float | None = None
    events: list[dict[str, Any]] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)
    takers: list[Taker] = field(default_factory=list)
    ahead: int = 0
    """How many claims of its spool come before it."""
    forecast: str = ""
    planned_by: int | None = None
    """The plan of a claim that is in no place."""


def find(pool: PoolDirectory, id: str) -> Location:
    """Look for a claim everywhere it could be."""
    found = Location(id, _places(pool, id))
    found.events = sorted(_events(pool, id), key=lambda event: event["t"])
    found.errors = list(_errors(pool, id))
    found.since = _since(pool, found)
    if not found.places:
        found.planned_by = _plan_of(pool, id)
    waiting = next((place for place in found.places if place.spool is not None), None)
    if waiting is not None and waiting.spool is not None:
        _explain_wait(pool, found, waiting.spool, waiting.name)
    return found


def _places(pool: PoolDirectory, id: str) -> list[Place]:
    places = []
    for spool in spool_names(pool):
        for name in claims.waiting(pool, spool):
            if name.id == id:
                places.append(Place(f"spools/{spool}/{name}", "waiting", name, spool))
    for state in (State.RUNNING, State.DONE, State.FAILED):
        for name in claims.owned(pool, state):
            if name.id == id:
                places.append(Place(f"{state.value}/{name}", state.value, name))
    return places


def _plan_of(pool: PoolDirectory, id: str) -> int | None:
    for number in plans.numbers(pool):
        if any(text.startswith(f"{id}.") for text, _spool in plans.read_names(pool, number)):
            return number
    return None


def _events(pool: PoolDirectory, id: str) -> Iterator[dict[str, Any]]:
    directory = pool.directory("events")
    for text in atomic.names(directory):
        if text.endswith(".jsonl"):
            for event in read_events(f"{directory}/{text}"):
                if event.get("id") == id and isinstance(event.get("t"), int | float):
                    yield event


def _errors(pool: PoolDirectory, id: str) -> Iterator[dict[str, Any]]:
    directory = pool.directory("errors")
    mine = (text for text in atomic.names(directory) if text.startswith(f"{id}.a"))
    for text in sorted(mine, key=lambda text: (len(text), text)):
        try:
            record = read_json(f"{directory}/{text}", patience_s=0.0)
        except (OSError, FsqueueError):
            continue  # damaged: fsqueue check reports it
        yield {key: record.get(key) for key in ("attempt", "worker", "at", "error")}


def _since(pool: PoolDirectory, found: Location) -> float | None:
    """Return when the claim was moved to its place: its ctime, by the server's clock."""
    if len(found.places) != 1:
        return None
    try:
        return os.stat(f"{pool.root}/{found.places[0].path}").st_ctime
    except OSError:
        return None  # RACE: it moved on


# ---- the claims of an input ----


@dataclass(frozen=True, slots=True)
class InputClaim:
    """A planned claim, its state, what it reads, and where its output is or will be."""

    id: str
    state: str
    plan: int
    inputs: tuple[str, ...]
    output: str
    """Empty for handlers without outputs."""


def input_claims(pool: PoolDirectory, path: str | None = None) -> Iterator[InputClaim]:
    """Yield the claims that read the file at `path` (None: all), plan by plan.

    The content of each claim of the plans that hold the file is read.
    """
    reader = PoolReader(pool.root)
    for plan in reader.plans():
        if path is not None and path not in plan.inputs:
            continue
        handler = _handler(plan.handler)
        for claim in reader.claims(plan):
            try:
                inputs = tuple(handler.inputs(reader.payload(claim)))
            except (OSError, FsqueueError, KeyError, TypeError, ValueError):
                inputs = ()  # RACE: it moved since it was listed; or it is lost or damaged
            if path is None or path in inputs:
                yield InputClaim(claim.id, _state(claim), plan.number, inputs, claim.output)


def _state(claim: ClaimView) -> str:
    if claim.given_up:
        return "superseded" if is_superseded(claim.path) else "forgotten"
    return "waiting" if claim.state == State.WAITING else claim.state


def _handler(name: str) -> Handler:
    try:
        return load_handler(name)
    except FsqueueError:
        return Handler()  # not installed here: most name their one input as Handler does


# ---- why it waits ----


def _explain_wait(pool: PoolDirectory, found: Location, spool: str, name: ClaimName) -> None:
    living = sorted({lease.worker for lease in lease_names(pool) if lease.living})
    statuses = {worker: read_status(pool, worker) for worker in living}
    held = {claim.owner: claim for claim in claims.owned(pool, State.RUNNING)}
    orders = frozenset(filter(ORDER.fullmatch, atomic.names(pool.directory("control"))))
    listings = {
        each: in_order(claims.waiting(pool, each), Preferences()) for each in spool_names(pool)
    }
    order = [each.id for each in reversed(listings[spool])]
    found.ahead = order.index(name.id) if name.id in order else 0
    able = []
    for worker, status in statuses.items():
        why = _forbids(worker, status, orders, spool, name)
        found.takers.append(Taker(worker, not why, why or _busy(status, held.get(worker))))
        if status is not None and not why:
            able.append(peer_of(status, held.get(worker)))
    if not able:
        found.forecast = "no living worker may take it" if living else "no worker is alive"
        return
    race = Race(able[1:], able[0])
    measured = any(peer.rates for peer in able)
    waiting = ((each, claim) for each, names in listings.items() for claim in names)
    for each, claim in sorted(waiting, key=_merit):
        winner, end = race.deal(each, claim)
        if claim.id == name.id:
            when = f", done in {end:,.0f} s" if measured and math.isfinite(end) else ""
            found.forecast = f"by cost and speed, {winner.worker} should take it{when}"
            return


def _merit(waiting: tuple[str, ClaimName]) -> tuple[int, int, str]:
    """Return a sort key: what is taken first is first."""
    _, name = waiting
    return -name.priority, -name.cost, name.id


def _forbids(
    worker: str, status: Status | None, orders: frozenset[str], spool: str, name: ClaimName
) -> str:
    for order in (Order.STOP, Order.DRAIN, Order.PAUSE):
        if orders & {order_name(order), order_name(order, worker)}:
            return f"ordered to {order}"
    if status is None:
        return ""  # no status: nothing rules it out
    if status.state in LEAVING:
        return f"it is {status.state}"
    if name.kind in status.unable:
        return f"it cannot do claims of kind {name.kind}; its log has the reason"
    if lacking := lacks(name.kind, status.tier, status.capabilities):
        return lacking
    if not status.stealing and status.spool != spool:
        return f"it works only on {status.spool} (--no-work-stealing)"
    return ""


def _busy(status: Status | None, claim: ClaimName | None) -> str:
    if status is None:
        return "it is alive, but reports nothing"
    if claim is None:
        return f"it is {status.state} and looks again within --steal-interval"
    peer = peer_of(status, claim)
    rate = status.rates.get(claim.kind)
    left = f", for {peer.left / rate:,.0f} s more" if rate else ""
    return f"it runs {claim.id}{left}"
