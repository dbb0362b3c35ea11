"""Read a worker's status for what can be shown and reckoned with.

A status is a hint (I8), written by another process on another host: its texts are made fit for any
terminal, its numbers are believed only where they make sense, and its times are compared with each
other, never with a clock of ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from fsqueue.journals import Journals
from fsqueue.status import Current, Status, number, printable

PAUSE_S: Final = 10.0
ACTIVE: Final = frozenset("loading running draining".split())


@dataclass(frozen=True, slots=True)
class Use:
    """What a GPU was doing when its worker last looked. None: nobody could tell."""

    compute_percent: float | None = None
    memory_percent: float | None = None
    temperature: float | None = None
    power_watts: float | None = None


def blank(id: str) -> Status:
    """Return what is known of a worker without a usable status: nothing."""
    return Status(id, state="", weight=0.0, started=0.0, last_activity=0.0)


def make_printable(status: Status) -> None:
    """Make every text in a status fit for any terminal, and not too long."""
    for name in ("host", "spool", "model", "specialization", "message"):
        if (text := getattr(status, name)) is not None:
            setattr(status, name, printable(text))
    status.loaded = [printable(kind, 60) for kind in status.loaded[:20]]
    status.slurm = {printable(k, 40): printable(v, 60) for k, v in list(status.slurm.items())[:20]}
    if (current := status.current) is not None:
        for name in ("id", "kind", "spool", "unit"):
            setattr(current, name, printable(getattr(current, name), 120))


def use(status: Status) -> Use:
    """Return what the worker's GPU was doing, as far as the numbers can be true."""

    def within(name: str, low: float, high: float) -> float | None:
        value = number(status.gpu.get(name))
        return float(value) if value is not None and low <= value <= high else None

    return Use(
        within("compute_percent", 0, 100),
        within("memory_percent", 0, 100),
        within("temperature", -60, 200),
        within("power_watts", 0, 10_000),
    )


def progress(current: Current | None) -> float | None:
    """Return how much of its claim a worker has done, 0 to 1; None if it does not say."""
    if current is None or current.total <= 0:
        return None
    return min(max(current.done / current.total, 0.0), 1.0)


class Speeds(NamedTuple):
    """What a worker does per second; None where there is nothing to go by."""

    items: float | None = None
    """Sequences, or claims."""
    tokens: float | None = None
    cost: float | None = None


def speeds(status: Status, journals: Journals, sequences: bool) -> Speeds:
    """Return what a worker does per second.

    By its last claims; else by all of its claims; else by its first claim's progress.
    """
    if status.state and status.state not in ACTIVE:
        return Speeds()
    speed = journals.speed(status.worker_id)
    if speed is not None:
        silence_s = status.written_at - speed.finished_at
        if silence_s <= max(2 * speed.longest_s, PAUSE_S):
            items = speed.measures.get("sequences") if sequences else speed.claims
            return Speeds(items, speed.measures.get("tokens"), speed.cost)
    elif status.claims_done > 0 and status.busy_s > 0:
        done = status.measures_done.get("sequences") if sequences else status.claims_done
        return _over(status.busy_s, done, status.measures_done.get("tokens"), status.cost_done)
    current, part = status.current, progress(status.current)
    if current is None or part is None or status.written_at <= current.started:
        return Speeds()
    items = current.measures.get("sequences", _sequences(current)) if sequences else part
    elapsed_s = status.written_at - current.started
    return _over(elapsed_s, items, current.measures.get("tokens"), current.cost * part)


def _sequences(current: Current) -> int | None:
    return current.done if current.unit == "sequences" else None


def _over(seconds: float, *amounts: float | None) -> Speeds:
    return Speeds(*(None if amount is None else amount / seconds for amount in amounts))
