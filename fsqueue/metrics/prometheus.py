"""A pool's metrics for Prometheus, as a text file for node_exporter's textfile collector.

Names follow Prometheus' conventions: base units (seconds, ratios, degrees Celsius, watts), counters
end in `_total`, unknown values have no sample. Claims are counted in directories; samples for a
spool or a GPU are its workers' reports.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from fsqueue.errors import UsageError
from fsqueue.monitor.snapshot import Snapshot
from fsqueue.monitor.spools import SpoolRow
from fsqueue.monitor.time_use import TimeUse
from fsqueue.monitor.workers import Use
from fsqueue.pool.overwriting import Earlier, refuse_overwriting
from fsqueue.storage import atomic

log = logging.getLogger(__name__)

FIRST: Final = "# HELP fsqueue_"
"""How such a file begins."""
Labels = dict[str, str]
Sample = tuple[Labels, float | None]


@dataclass(frozen=True, slots=True)
class Family:
    """One metric and its samples; samples whose value is None are left out."""

    name: str
    kind: str
    help: str
    samples: tuple[Sample, ...]


class TextFile:
    """The file at `path`, replaced whole at each look. Raises UsageError if it cannot be there."""

    def __init__(self, path: str) -> None:
        self._path = os.path.abspath(path)
        self._failed = ""
        directory = os.path.dirname(self._path)
        if not os.path.isdir(directory) or os.path.isdir(self._path):
            raise UsageError(
                f"--textfile {path} cannot be written: {directory} must be a directory. The file's "
                f"name should end in .prom, or node_exporter ignores it."
            )
        refuse_overwriting(self._path, recognise=_recognise, option="--textfile ")

    def write(self, snapshot: Snapshot) -> None:
        """Replace the file. A full disk costs a warning, and stale metrics."""
        try:
            atomic.replace(self._path, exposition(snapshot).encode("utf-8", "replace"))
            self._failed = ""
        except OSError as error:
            why = error.strerror or str(error)
            if why != self._failed:
                log.warning("%s could not be written: %s", self._path, why)
            self._failed = why


def _recognise(path: str) -> Earlier:
    with open(path, encoding="utf-8", errors="replace") as file:
        head = file.read(len(FIRST))
    return Earlier.SAME if head in ("", FIRST) else Earlier.FOREIGN


def exposition(snapshot: Snapshot) -> str:
    """Return a snapshot in Prometheus' text format."""
    lines: list[str] = []
    for family in (*_of_pool(snapshot), *_of_spools(snapshot)):
        known = [(labels, value) for labels, value in family.samples if value is not None]
        if known:
            lines.append(f"# HELP {family.name} {family.help}")
            lines.append(f"# TYPE {family.name} {family.kind}")
            for labels, value in known:
                lines.append(_line(family.name, {"pool": snapshot.pool} | labels, value))
    return "\n".join(lines) + "\n"


_ESCAPES: Final = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


def _line(name: str, labels: Labels, value: float) -> str:
    listed = ",".join(f'{key}="{text.translate(_ESCAPES)}"' for key, text in labels.items())
    return f"{name}{{{listed}}} {value!r}"


def _of_pool(snapshot: Snapshot) -> Iterator[Family]:
    count = snapshot.count
    amounts = {
        "waiting": count.waiting,
        "running": count.running,
        "done": count.done,
        "failed": count.failed,
        **count.others,
    }
    claims = tuple(({"state": state}, amount.claims) for state, amount in amounts.items())
    costs = tuple(({"state": state}, amount.cost) for state, amount in amounts.items())
    states = Counter(row.state for row in snapshot.workers if row.living or row.holds)
    troubles = Counter(alert.kind for alert in snapshot.warnings)

    def one(name: str, help: str, value: float | None) -> Family:
        return Family(name, "gauge", help, (({}, value),))

    yield Family("fsqueue_claims", "gauge", "Claims of the pool, by state.", claims)
    yield Family("fsqueue_claims_cost", "gauge", "Cost of the claims, by state.", costs)
    yield one("fsqueue_progress_ratio", "Share of the planned cost, 0 to 1.", snapshot.progress)
    yield one("fsqueue_finished", "1 if nothing waits and nothing runs.", int(snapshot.finished))
    yield one("fsqueue_remaining_seconds", "Estimated time until all is done.", snapshot.eta_s)
    workers = tuple(({"state": state}, number) for state, number in sorted(states.items()))
    yield Family("fsqueue_workers", "gauge", "Workers that are alive or hold a claim.", workers)
    warnings = tuple(({"kind": str(kind)}, number) for kind, number in sorted(troubles.items()))
    yield Family("fsqueue_warnings", "gauge", "Things that need attention.", warnings)
    yield one("fsqueue_look_timestamp_seconds", "When the pool was looked at.", snapshot.taken_at)
    yield one("fsqueue_look_duration_seconds", "How long that look took.", snapshot.took_s)


def _of_spools(snapshot: Snapshot) -> Iterator[Family]:
    rows = [row for row in snapshot.spools if row.name]
    for name, kind, help, value in _SPOOL:
        samples = tuple(({"spool": row.name}, value(row)) for row in rows)
        yield Family(f"fsqueue_spool_{name}", kind, help, samples)
    unit = snapshot.count.item or "claims"
    speeds = tuple(({"spool": row.name}, row.items_per_s) for row in rows)
    yield Family(f"fsqueue_spool_{unit}_per_second", "gauge", "Speed of its workers.", speeds)
    for counter in sorted(snapshot.rates):
        rates = tuple(({"spool": row.name}, row.rates.get(counter)) for row in rows)
        yield Family(f"fsqueue_spool_{counter}_per_second", "gauge", "Speed of its workers.", rates)
    for name, help, used in _GPU:
        gpus = tuple((_gpu_labels(row), used(row.use)) for row in rows)
        yield Family(f"fsqueue_gpu_{name}", "gauge", help, gpus)
    for name, help, of in _TIME:
        shares = tuple((_gpu_labels(row), of(row.time_use)) for row in rows)
        yield Family(f"fsqueue_computing_{name}", "gauge", help, shares)


def _gpu_labels(row: SpoolRow) -> Labels:
    return {"spool": row.name, "gpu": row.gpu, "model": row.model, "host": row.host}


def _ratio(percent: float | None) -> float | None:
    return None if percent is None else percent / 100


_SPOOL: Final[tuple[tuple[str, str, str, Callable[[SpoolRow], float | None]], ...]] = (
    ("claims_waiting", "gauge", "Claims that wait in the spool.", lambda row: row.waiting.claims),
    ("cost_waiting", "gauge", "Cost of the claims that wait there.", lambda row: row.waiting.cost),
    ("weight", "gauge", "Weight of its GPU; an RTX 3090 is 1.", lambda row: row.weight or None),
    ("workers", "gauge", "Its living workers.", lambda row: row.workers),
    ("stalled", "gauge", "1 if one of them makes no progress.", lambda row: int(row.stalled)),
    ("claims_done_total", "counter", "Claims that its workers did.", lambda row: row.done),
    ("attempts_failed_total", "counter", "Attempts that failed there.", lambda row: row.errors),
    ("claims_stolen_total", "counter", "Claims that its workers stole.", lambda row: row.stolen_in),
    ("claims_lost_total", "counter", "Claims stolen from the spool.", lambda row: row.stolen_out),
    ("remaining_seconds", "gauge", "Estimated time until it is empty.", lambda row: row.eta_s),
)
_TIME: Final[tuple[tuple[str, str, Callable[[TimeUse], float | None]], ...]] = (
    ("busy_ratio", "Share of handlers' time in which the device computed.",
     lambda use: _ratio(use.computing_percent)),
    ("feeding_ratio", "Share of it in which input was waited for.",
     lambda use: _ratio(use.feeding_percent)),
    ("mfu_ratio", "Operations done, by those that the device reaches in large products.",
     lambda use: _ratio(use.mfu_percent)),
    ("memory_peak_gibibytes", "The most memory that a worker there held.",
     lambda use: use.peak_gib),
)  # fmt: skip
_GPU: Final[tuple[tuple[str, str, Callable[[Use], float | None]], ...]] = (
    ("utilization_ratio", "How busy it computes, 0 to 1.", lambda use: _ratio(use.compute_percent)),
    ("memory_used_ratio", "Share of its memory in use.", lambda use: _ratio(use.memory_percent)),
    ("temperature_celsius", "Its temperature.", lambda use: use.temperature),
    ("power_watts", "The power it draws.", lambda use: use.power_watts),
)
