"""Record every state in which a killed command can leave the disk, by running it once.

Before each change that it makes below a directory, everything that it started is stopped, and the
directory is copied into memory. That copy is what SIGKILL at this moment would leave: the
kernel takes nothing back when a process ends (a power loss may; that is not tested here). So one
run gives what a kill at each of its changes would give, and a test of the tests compares the two.

Only calls that change something count: killed before a call that reads or syncs, a process leaves
what it leaves when it is killed before the next change. A write is cut in the middle, as the kernel
may do it.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

from fsqueue import cli
from tests.support.ptrace import Call, traced

Disk = dict[str, bytes | None]
"""Every path below a directory with its bytes, None for a directory."""


@dataclass(frozen=True, slots=True)
class CrashPoint:
    """The disk if everything is killed as the n-th change begins."""

    number: int
    change: str
    disk: Disk


@dataclass(slots=True)
class RecordedRun:
    """One undisturbed run: how it ended, what it printed and left, and every state on the way."""

    status: int = 0
    said: str = ""
    instants: list[CrashPoint] = field(default_factory=list)
    left: Disk = field(default_factory=dict)


def record_run(
    action: Callable[[], object], root: Path, *, killed_at: int | None = None
) -> RecordedRun:
    """Run `action` in a child, to its end or to change number `killed_at`."""
    life = RecordedRun()
    base = f"{root}/"

    def about_to(call: Call) -> bool:
        if not any(path.startswith(base) for path in call.paths):
            return False
        change = str(call).replace(base, "")
        life.instants.append(
            CrashPoint(len(life.instants), change, _cut(disk_of(root), call, base))
        )
        return len(life.instants) - 1 == killed_at

    voice = os.memfd_create("said")

    def act() -> None:
        for stream in (1, 2):
            os.dup2(voice, stream)
        with open(1, "w", closefd=False) as out, open(2, "w", closefd=False) as err:
            sys.stdout, sys.stderr = out, err
            action()

    life.status = traced(act, about_to)
    life.said = os.pread(voice, 1 << 20, 0).decode(errors="replace")
    os.close(voice)
    life.left = disk_of(root)
    return life


def command(words: Sequence[str]) -> Callable[[], None]:
    """Return a function that runs `fsqueue WORD...` like the console script."""

    def run() -> None:
        sys.argv = ["fsqueue", *words]
        cli.main()

    return run


def program(words: Sequence[str]) -> Callable[[], None]:
    """Return a function that executes `fsqueue WORD...` as a new program."""
    return lambda: os.execv(sys.executable, [sys.executable, "-m", "fsqueue", *words])


def run_command(words: Sequence[str]) -> tuple[int, str]:
    """Run `fsqueue WORD...` in this process; return its exit status and what it printed."""
    said, before = io.StringIO(), sys.argv
    try:
        with redirect_stdout(said), redirect_stderr(said):
            command(words)()
    except SystemExit as end:
        return int(end.code or 0), said.getvalue()
    finally:
        sys.argv = before
    raise AssertionError("main() always exits")


def spread_evenly(
    instants: Sequence[CrashPoint], most: int, *, but: Callable[[str], bool] = lambda _: False
) -> list[CrashPoint]:
    """Return up to `most` of them, evenly spread, including the first and the last.

    Of neighbours whose disks are the same, except for names that are `but`, only one is kept.
    """
    fresh: list[CrashPoint] = []
    before: Disk | None = None
    for each in instants:
        disk = {name: data for name, data in each.disk.items() if not but(name)}
        if disk != before:
            fresh.append(each)
        before = disk
    if len(fresh) <= most:
        return fresh
    return [fresh[number * (len(fresh) - 1) // (most - 1)] for number in range(most)]


# ---- disks ----


def disk_of(root: Path) -> Disk:
    """Return what is on the disk below a directory."""
    return dict(_found(str(root), len(str(root)) + 1))


def _found(directory: str, cut: int) -> Iterator[tuple[str, bytes | None]]:
    for entry in sorted(os.scandir(directory), key=lambda one: one.name):
        if entry.is_dir(follow_symlinks=False):
            yield entry.path[cut:], None
            yield from _found(entry.path, cut)
        else:
            yield entry.path[cut:], Path(entry.path).read_bytes()


def restore_disk(root: Path, disk: Disk) -> None:
    """Make the directory hold exactly this."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    for name, data in disk.items():
        if data is None:
            (root / name).mkdir()
        else:
            (root / name).write_bytes(data)


def _cut(disk: Disk, call: Call, base: str) -> Disk:
    """Return the disk with half of a write done."""
    name = call.paths[0].removeprefix(base)
    old = disk.get(name)
    if not call.data or old is None:
        return disk
    at = len(old) if call.at is None else call.at
    half = call.data[: len(call.data) // 2]
    return disk | {name: old[:at].ljust(at, b"\0") + half + old[at + len(half) :]}
