"""Let several processes compete for the same names at the same moments, and judge who won.

Three operations must have exactly one winner: the rename that takes a claim (by the same function
that takes claims), the link that publishes an output, and O_EXCL. The contestants do not wait for
each other: every round has its own moment on the wall clock, corrected for skew between hosts.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from fsqueue.errors import NotSupportedError
from fsqueue.pool.claims import move
from fsqueue.storage import atomic

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

RACES: Final = ("rename", "link", "create")
ROUND_S: Final = 0.02


def prepare(directory: str, rounds: int) -> None:
    """Make the files to be taken; one contestant does this before the start."""
    for number in range(rounds):
        atomic.stage(f"{directory}/taken{number}", (b"claim",))


def contend(directory: str, me: str, rounds: int, start: float) -> list[str]:
    """Try each prize at its moment, counted from `start` (wall clock); return what was won."""
    won = []
    for number in range(rounds):
        time.sleep(max(0.0, start + number * ROUND_S - time.time()))
        if move(f"{directory}/taken{number}", f"{directory}/taken{number}@{me}"):
            won.append(f"rename {number}")
        if _publish(f"{directory}/linked{number}", me):
            won.append(f"link {number}")
        if _create(f"{directory}/created{number}", me):
            won.append(f"create {number}")
    return won


def judge(won: Iterable[Sequence[str]], rounds: int) -> list[str]:
    """Return what is wrong with the wins: each prize must be won exactly once."""
    wins = Counter(prize for each in won for prize in each)
    problems = []
    for race in RACES:
        several = sum(wins[f"{race} {number}"] > 1 for number in range(rounds))
        none = sum(wins[f"{race} {number}"] == 0 for number in range(rounds))
        if several:
            problems.append(f"{several} of {rounds} contests by {race} had several winners")
        if none:
            problems.append(f"{none} of {rounds} contests by {race} had no winner")
    return problems


def run_contest_here(directory: str, *, rounds: int, processes: int) -> list[list[str]]:
    """Run a contest among processes of this host; return what each won."""
    from multiprocessing import get_context

    prepare(directory, rounds)
    fork = get_context("fork")
    start = time.time() + 0.2
    contestants = []
    for number in range(processes):
        reader, writer = fork.Pipe(duplex=False)
        given = (writer, directory, f"p{number}", rounds, start)
        contestant = fork.Process(target=_contend_and_report, args=given)
        contestant.start()
        writer.close()
        contestants.append((contestant, reader))
    won = []
    for contestant, reader in contestants:
        try:
            won.append(reader.recv())
        except EOFError:
            won.append(["it ended before it could report"])
        contestant.join()
    return won


def _contend_and_report(
    writer: Connection, directory: str, me: str, rounds: int, start: float
) -> None:
    writer.send(contend(directory, me, rounds, start))


def _publish(path: str, me: str) -> bool:
    try:
        return atomic.publish(path, me.encode(), durable=False)
    except NotSupportedError:
        return False


def _create(path: str, me: str) -> bool:
    try:
        atomic.stage(path, (me.encode(),))
        return True
    except OSError as error:
        # RACE: another created it first. sshfs reports EPERM then.
        if not isinstance(error, FileExistsError | PermissionError):
            raise
        return False
