"""Choose claims by what is known of them: their error, exit status, kind, or inputs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from fsqueue.errors import FsqueueError
from fsqueue.handler import Handler, load_handler
from fsqueue.history.failures import FailedAttempt, failed_attempts
from fsqueue.pool import claims
from fsqueue.pool.layout import State
from fsqueue.pool.names import ClaimName, is_given_up
from fsqueue.pool.requirements import base_of
from fsqueue.pool.settings import PoolDirectory, spool_names
from fsqueue.storage.untrusted import read_json


@dataclass(frozen=True, slots=True)
class Matching:
    """What claims must match, all of it. What is empty or None matches every claim."""

    error: str = ""
    """Is in the last error, or in what was kept of that attempt's output; case does not count."""
    exit_status: int | None = None
    """Of the program of the last attempt, as `joblog` shows it: 128 more than a signal."""
    kind: str = ""
    inputs: str = ""
    """A pattern such as *.fa or /data/run7/*, of the path or the name of one of its inputs."""

    def __bool__(self) -> bool:
        return self != Matching()


def select(
    pool: PoolDirectory, states: Iterable[State], matching: Matching, ids: Iterable[str] = ()
) -> list[str]:
    """Return the ids of the claims in these states that match, sorted; of `ids`, if there are any.

    Claims that were given up (superseded or forgotten) match nothing.
    """
    wanted = set(ids)
    return sorted(
        name.id
        for path, name in _names(pool, states)
        if (not wanted or name.id in wanted) and matches(pool, path, name, matching)
    )


def matches(pool: PoolDirectory, path: str, name: ClaimName, matching: Matching) -> bool:
    """Return whether the claim whose file is at `path` matches."""
    if matching.kind and matching.kind not in (name.kind, base_of(name.kind)):
        return False
    if matching.error or matching.exit_status is not None:
        kept = failed_attempts(pool, name.id) if _may_have_failed(path, name, pool) else []
        if not kept or not _matches_error(kept[-1], matching):
            return False
    return not matching.inputs or any(
        fnmatchcase(text, matching.inputs)
        for each in _inputs(path)
        for text in (each, os.path.basename(each))
    )


def _may_have_failed(path: str, name: ClaimName, pool: PoolDirectory) -> bool:
    return name.attempt > 0 or path.startswith(pool.state(State.FAILED))


def _matches_error(attempt: FailedAttempt, matching: Matching) -> bool:
    text = "\n".join([attempt.error, *attempt.output_lines])
    if matching.error.lower() not in text.lower():
        return False
    return matching.exit_status in (None, exit_status_in(attempt.record))


def exit_status_in(record: Mapping[str, Any]) -> int | None:
    """Return the exit status of an attempt's program as a shell would: 128 more than a signal."""
    code = record.get("returncode")
    if type(code) is not int:
        return None
    return code if code >= 0 else 128 - code


def _names(pool: PoolDirectory, states: Iterable[State]) -> Iterator[tuple[str, ClaimName]]:
    for state in states:
        if state is State.WAITING:
            for spool in spool_names(pool):
                for name in claims.waiting(pool, spool):
                    yield pool.waiting(spool, name), name
            continue
        for name in claims.owned(pool, state):
            if not is_given_up(str(name)):
                yield pool.owned(state, name), name


def _inputs(path: str) -> list[str]:
    try:
        facts = read_json(path, patience_s=0.0)
        handler, payload = facts.get("handler"), facts.get("payload")
        if not (isinstance(handler, str) and isinstance(payload, dict)):
            return []
        return [each for each in _handler(handler).inputs(payload) if isinstance(each, str)]
    except (OSError, FsqueueError, KeyError, TypeError, ValueError):
        return []  # RACE: it moved since it was listed; or it is damaged, which `check` reports


def _handler(name: str) -> Handler:
    try:
        return load_handler(name)
    except FsqueueError:
        return Handler()  # not installed here: most name their one input as Handler does
