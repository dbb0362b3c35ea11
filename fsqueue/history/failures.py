"""Why claims failed: the error records of their attempts, and their workers' logs.

Records are evidence, written by the worker that failed or by the one that recovered the claim. One
may be missing or damaged; then that is what is reported.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

from fsqueue.errors import PoolError
from fsqueue.pool import claims
from fsqueue.pool.layout import State
from fsqueue.pool.names import WORKER, ClaimName, Role, is_given_up, role_of
from fsqueue.pool.settings import PoolDirectory, spool_names
from fsqueue.records.status import read_status
from fsqueue.slurm.allocation import Job
from fsqueue.storage import atomic
from fsqueue.storage.untrusted import printable, read_json

TAIL_BYTES: Final = 16 << 10


@dataclass(frozen=True, slots=True)
class FailedAttempt:
    """One attempt and its error record, as it is on disk. Text properties are printable."""

    attempt: int
    record: Mapping[str, Any]

    @property
    def worker(self) -> str:
        """The worker that made the attempt."""
        return printable(self.record.get("worker", "?"), 80)

    @property
    def error(self) -> str:
        """What went wrong, on one line."""
        return printable(self.record.get("error", "?"), 2000)

    @property
    def at(self) -> float | None:
        """When, in seconds since 1970 by the worker's clock."""
        at = self.record.get("at")
        return at if isinstance(at, int | float) else None

    @property
    def output_lines(self) -> list[str]:
        """What was kept of the program's stderr or of the traceback."""
        return [printable(line, 2000) for line in str(self.record.get("detail") or "").splitlines()]


@dataclass(frozen=True, slots=True)
class FailedClaim:
    """A claim in failed/ and the history of its attempts, oldest first."""

    name: ClaimName
    attempts: tuple[FailedAttempt, ...]


def failed_claims(pool: PoolDirectory) -> list[FailedClaim]:
    """Return the claims that failed, with the errors of their attempts, sorted by ID.

    Those that were superseded or forgotten are not failures.
    """
    failed = (name for name in claims.owned(pool, State.FAILED) if not is_given_up(str(name)))
    found = sorted(failed, key=lambda name: name.id)
    return [FailedClaim(name, tuple(_history(pool, name))) for name in found]


def failed_attempts(pool: PoolDirectory, id: str) -> list[FailedAttempt]:
    """Return the attempts of a claim that left an error record, wherever the claim is now.

    A claim that was retried may have skipped numbers.
    """
    pattern = re.compile(rf"{re.escape(id)}\.a(\d{{1,4}})\.json")
    found = map(pattern.fullmatch, atomic.names(pool.directory("errors")))
    return list(_records(pool, id, sorted(int(match[1]) for match in found if match)))


def attempts_to_come(pool: PoolDirectory) -> list[FailedClaim]:
    """Return the claims of which an attempt failed and that wait or run again, sorted by ID."""
    directories = [*map(pool.spool, spool_names(pool)), pool.state(State.RUNNING)]
    texts = chain.from_iterable(map(atomic.names, directories))
    names = (name for text in texts if (name := ClaimName.parse(text)) and name.attempt)
    found = ((name, tuple(_records(pool, name.id, range(name.attempt)))) for name in names)
    claims = (FailedClaim(name, records) for name, records in found if records)
    return sorted(claims, key=lambda claim: claim.name.id)


def worker_log(pool: PoolDirectory, attempt: FailedAttempt) -> str | None:
    """Return the path of the log of an attempt's worker, if it ran in one of fsqueue's arrays."""
    worker = attempt.record.get("worker")
    if not (isinstance(worker, str) and WORKER.fullmatch(worker)):
        return None
    status = read_status(pool, worker)
    job = Job.of(status.slurm) if status is not None else None
    path = f"{pool.directory('events')}/slurm-{job.name}.log" if job else ""
    return path if path and os.path.isfile(path) else None


def tail(path: str) -> list[str]:
    """Return the last lines of a log, printable."""
    with open(path, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
        lines = file.read().decode("utf-8", "replace").splitlines()
    return [printable(line, 2000) for line in lines]


def _history(pool: PoolDirectory, name: ClaimName) -> Iterator[FailedAttempt]:
    found = list(_records(pool, name.id, range(name.attempt + 1)))
    yield from found
    # `cancel` may be killed between moving the claim and recording why. It cannot record first: an
    # attempt might begin in between, whose own record could then not be written.
    is_cancelled = role_of(name.owner or "") is Role.CANCEL
    if is_cancelled and not any(each.attempt == name.attempt for each in found):
        yield FailedAttempt(
            name.attempt,
            {**claims.CANCELLED_WAITING, "attempt": name.attempt, "worker": name.owner},
        )


def _records(pool: PoolDirectory, id: str, attempts: Iterable[int]) -> Iterator[FailedAttempt]:
    for attempt in attempts:
        try:
            record = read_json(pool.error(id, attempt), patience_s=0.0)
        except FileNotFoundError:
            continue  # RACE: not visible yet on a network mount, or someone cleaned up
        except (OSError, PoolError) as error:
            record = {"error": f"its record cannot be read: {error}"}
        yield FailedAttempt(attempt, record | {"attempt": attempt})
