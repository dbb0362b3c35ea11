"""Test in a directory what fsqueue assumes of a file system, from one host.

Each probe uses the same calls as the protocol (`storage.atomic`), in a private directory that is
removed afterwards, and returns a finding. `quick` takes milliseconds and a few dozen operations;
`thorough` also lets several processes compete. What only a second host can show is in `two_hosts`.
"""

from __future__ import annotations

import errno
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from fsqueue.errors import NotSupportedError
from fsqueue.maintenance.doctor.contention import RACES, judge, run_contest_here
from fsqueue.storage import atomic, directories
from fsqueue.storage.locks import excludes_other_processes
from fsqueue.storage.mounts import Mount, mount_of

PRIVATE: Final = ".fsqueue-doctor-"
LITTLE_BYTES: Final = 1 << 30
LITTLE_INODES: Final = 10_000
SLOW_S: Final = 0.1
SKEW_S: Final = 2.0
NAME_BYTES: Final = 255
SLOWER: Final = "thieves may scan at the same time, which is slower but still correct"
OWN_TIME: Final = "no decision depends on it; times shown are each host's own"


class Level(StrEnum):
    """What a finding means for a pool."""

    FINE = "ok"
    NOTE = "note"
    """Something is missing or slow that fsqueue can do without."""
    BAD = "BAD"
    """The directory is not suitable for a pool."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was tested, what was seen, and what it means."""

    name: str
    level: Level
    text: str


def fine(name: str, text: str) -> Finding:
    """Return a finding that is as it should be."""
    return Finding(name, Level.FINE, text)


def note(name: str, text: str) -> Finding:
    """Return a finding that a pool can do without."""
    return Finding(name, Level.NOTE, text)


def bad(name: str, text: str) -> Finding:
    """Return a finding that a pool cannot do without."""
    return Finding(name, Level.BAD, text)


def refuse_unfit(root: str) -> None:
    """Raise NotSupportedError, with the reason, if a pool at `root` would not work.

    Tests the nearest directory that exists; an OSError is raised as it is.
    """
    directory = os.path.abspath(root)
    while not os.path.isdir(directory):
        directory = os.path.dirname(directory)
    unfit = [finding.text for finding in quick(directory) if finding.level is Level.BAD]
    if unfit:
        raise NotSupportedError(
            f"{root} cannot hold a pool: {'; '.join(unfit)}. Put the pool on another file system; "
            f"for details: fsqueue doctor {directory}"
        )


def quick(directory: str) -> Iterator[Finding]:
    """Run the tests that take milliseconds. Raises OSError if nothing can be written there."""
    mount = mount_of(directory)
    yield kind(mount)
    yield space(mount)
    with private_directory(directory) as scratch:
        for probe in (names, publishes, creates, renames):
            yield from guarded(probe, scratch)


def thorough(directory: str) -> Iterator[Finding]:
    """Run all tests that one host can make alone."""
    yield from quick(directory)
    with private_directory(directory) as scratch:
        for probe in (contends, opens, locks, syncs, clock):
            yield from guarded(probe, scratch)


def guarded(probe: Callable[[str], Finding], scratch: str) -> Iterator[Finding]:
    """Run one probe; an error that it did not expect is a finding, too."""
    try:
        yield probe(scratch)
    except (OSError, NotSupportedError) as error:
        yield bad(probe.__name__, f"it could not be tested: {error}")


@contextmanager
def private_directory(directory: str) -> Iterator[str]:
    """Make a private directory, and remove it with its contents afterwards."""
    scratch = f"{directory}/{PRIVATE}{secrets.token_hex(6)}"
    directories.make(scratch)
    try:
        yield scratch
    finally:
        directories.discard(scratch)


# ---- quick probes ----


def kind(mount: Mount) -> Finding:
    """Report the type of the file system."""
    text = f"{mount.type or 'unknown'} from {mount.source or '?'} ({mount.options or '?'})"
    if mount.one_host:
        return note("type", f"{text}: only this host can see it, so all workers must run here")
    return fine("type", text)


def space(mount: Mount) -> Finding:
    """Report the free space. A claim takes an inode, and so does its output."""
    inodes = "no fixed number of" if mount.free_inodes is None else f"{mount.free_inodes:,}"
    if mount.free_bytes is None:
        text = (
            f"its size is unknown, and {inodes} inodes are free: perhaps its servers just started"
        )
        return note("space", f"{text}; if nothing can be written yet, try again in a minute")
    text = f"{mount.free_bytes / 2**30:,.1f} GiB and {inodes} inodes are free"
    if mount.free_bytes < 1 << 20 or (mount.free_inodes or 1000) < 1000:
        return bad("space", f"{text}: not enough for a pool")
    if mount.free_bytes < LITTLE_BYTES or (mount.free_inodes or LITTLE_INODES) < LITTLE_INODES:
        return note("space", f"{text}: little; a claim and its output take one inode each")
    return fine("space", text)


def names(scratch: str) -> Finding:
    """Try the longest name, in the characters that claims' names have."""
    longest = "Aa_-.@0".ljust(NAME_BYTES, "x")
    try:
        atomic.stage(f"{scratch}/{longest}", (b"x",))
    except OSError as error:
        if error.errno not in (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ):
            raise
        refused = f"names of {NAME_BYTES} bytes are refused ({error.strerror})"
        return bad("names", f"{refused}, and a claim's name carries its state")
    if longest not in atomic.names(scratch):
        return bad("names", "a long name is not listed as it was written")
    return fine("names", f"{NAME_BYTES} bytes, listed as they were written")


def publishes(scratch: str) -> Finding:
    """Publish a name twice: the first one's bytes must stay."""
    path = f"{scratch}/published"
    try:
        first, second = atomic.publish(path, b"first"), atomic.publish(path, b"second")
    except NotSupportedError:
        return bad("link", "hard links do not work, and only link(2) publishes without replacing")
    if not first or second or atomic.read(path) != b"first":
        return bad("link", "link(2) replaced an existing name: an output could be overwritten")
    return fine("link", "never replaces: an existing output stays")


def creates(scratch: str) -> Finding:
    """Create a name twice with O_EXCL."""
    path = f"{scratch}/created"
    atomic.stage(path, (b"first",))
    try:
        atomic.stage(path, (b"second",))
    except FileExistsError:
        # Not a RACE: the directory is private; this is the expected answer.
        return fine("create", "O_EXCL refuses an existing name")
    return bad("create", "O_EXCL opened an existing file: half-written files could mix")


def renames(scratch: str) -> Finding:
    """Move a name, then move it again from where it no longer is."""
    atomic.stage(f"{scratch}/waiting", (b"claim",))
    atomic.rename(f"{scratch}/waiting", f"{scratch}/running")
    listed = set(atomic.names(scratch)) & {"waiting", "running"}
    if listed != {"running"}:
        text = f"a rename left {sorted(listed)} in the listing: a claim could be in two states"
        return bad("rename", text)
    try:
        atomic.rename(f"{scratch}/waiting", f"{scratch}/again")
    except FileNotFoundError:
        # Not a RACE: the directory is private; this is the expected answer.
        return fine("rename", "moves a name, and fails once it is gone: a claim has one owner")
    return bad("rename", "reports success for a name that is gone: a claim could have two owners")


# ---- probes that take a second ----


def contends(scratch: str) -> Finding:
    """Let four processes of this host compete for the same names at the same moments."""
    rounds = 40
    problems = judge(run_contest_here(scratch, rounds=rounds, processes=4), rounds)
    if problems:
        return bad("contest", f"{problems[0]}, among processes of one host")
    return fine("contest", f"{rounds} times {', '.join(RACES)} by 4 processes: one winner each")


def opens(scratch: str) -> Finding:
    """Rename and remove a file that is open."""
    path, moved = f"{scratch}/open", f"{scratch}/open.moved"
    atomic.stage(path, (b"content",))
    fd = os.open(path, os.O_RDONLY)
    try:
        atomic.rename(path, moved)
        whole = os.read(fd, 3) == b"con"
        before = set(os.listdir(scratch))
        atomic.discard(moved)
        whole = whole and os.read(fd, 99) == b"tent"
        left = sorted(set(os.listdir(scratch)) - before)
    except OSError as error:
        return note("open files", f"are lost by a rename ({error.strerror}): readers try again")
    finally:
        _close(fd)
    if not whole:
        return note("open files", "change when they are renamed: readers try again")
    after = f"; removing one leaves {left[0][:12]}… behind, which is ignored" if left else ""
    return fine("open files", f"can be renamed while they are read{after}")


def _close(fd: int) -> None:
    try:
        os.close(fd)
    except OSError:
        pass  # ESTALE for a file that was removed; nothing is lost


def locks(scratch: str) -> Finding:
    """Hold a lock, and let another process of this host try it."""
    excludes = excludes_other_processes(f"{scratch}/lock")
    if excludes is None:
        return note("flock", f"does not work here: {SLOWER}")
    if not excludes:
        return note("flock", f"excludes no other process: {SLOWER}")
    return fine("flock", "excludes another process of this host")


def syncs(scratch: str) -> Finding:
    """Time how long it takes to publish a small file durably."""
    times = sorted(_seconds_to_publish(f"{scratch}/sync{number}") for number in range(5))
    text = f"a file and its directory in {1000 * times[2]:.1f} ms"
    if times[2] > SLOW_S:
        return note("fsync", f"{text}: slow; prefer claims of minutes, not of seconds")
    return fine("fsync", text)


def clock(scratch: str) -> Finding:
    """Compare the file system's clock, by the mtime of a new file, with this host's."""
    skew_s = clock_skew_s(f"{scratch}/clock")
    text = f"files are stamped {abs(skew_s):.2f} s {'ahead of' if skew_s > 0 else 'behind'} here"
    if abs(skew_s) > SKEW_S:
        return note("clock", f"{text}: {OWN_TIME}")
    return fine("clock", text)


def clock_skew_s(begin: str) -> float:
    """Return how far the file system's clock is ahead of this host's; median of five.

    The names of the files that are written for it begin with `begin`, which is this process's own.
    """
    skews = []
    for index in range(5):
        path = f"{begin}{index}"
        begun = time.time()
        atomic.stage(path, (b"x",))
        ended = time.time()
        skews.append(os.stat(path).st_mtime - (begun + ended) / 2)
        atomic.discard(path)
    return sorted(skews)[2]


def _seconds_to_publish(path: str) -> float:
    begun = time.monotonic()
    atomic.publish(path, b"x")
    return time.monotonic() - begun


def fit(findings: Iterable[Finding]) -> bool:
    """Return whether a directory with these findings is suitable for a pool."""
    return all(finding.level is not Level.BAD for finding in findings)
