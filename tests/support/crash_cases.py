"""The cases for crashes of commands: how to prepare, what to run, what must hold afterwards.

Words of a command line are separated by blanks. SITE is the directory at whose every change the
command is killed, SHARED a directory beside it that all cases share.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from fsqueue import cli
from fsqueue.handler import Handler, load_handler
from fsqueue.maintenance.cleanup import Cleaner, remove
from fsqueue.pool.layout import State
from fsqueue.pool.leases import lease_names
from fsqueue.pool.names import ClaimName
from fsqueue.pool.settings import PoolDirectory, open_pool
from fsqueue.storage import atomic
from tests.support.disk_states import Disk
from tests.support.pools import Clock, Trivial, names_in, problems, state_counts, work_until_done

Prepare = Callable[[Path, Path], None]
"""Fill SITE; what takes long to make may be kept in SHARED."""


def nothing(_site: Path) -> None:
    """Check nothing more."""


@dataclass(frozen=True)
class Writes:
    """A command that changes something."""

    words: str
    prepare: Prepare
    settled: Callable[[Path], None] = nothing
    """What must hold when it was run again after the crash."""
    again: str | None = None
    """What is run then, if not the same; "" if nothing is."""
    status: int = 0
    again_status: frozenset[int] = frozenset({0})
    rough: tuple[str, ...] = ()
    """Prefixes of names that are not compared, because each run differs in them."""
    intact: bool = True
    """Whether `check` finds the pool clean at any time: not so where repairing is what is tried."""
    stays: bool = False
    """Whether SITE must be the same directory each time, because claims name paths in it."""
    most: int = 1000
    """At how many of its changes, evenly spread, it is killed; at all of them, nightly."""
    nightly: bool = False
    alone: bool = False
    """Whether it runs as a program, not as a fork of this process: a fork loses the threads of
    some libraries."""


@dataclass(frozen=True)
class Reads:
    """A command that only reads."""

    words: str
    prepare: Prepare
    status: int = 0


def commands(
    group: click.Group = cli.cli, before: tuple[str, ...] = ()
) -> Iterator[tuple[str, ...]]:
    """Yield the words of every command, nested ones included."""
    ctx = click.Context(group)
    for name in group.list_commands(ctx):
        found = group.get_command(ctx, name)
        if isinstance(found, click.Group):
            yield from commands(found, (*before, name))
        else:
            assert found is not None, name
            yield (*before, name)


def command_line(words: str, site: Path, shared: Path) -> list[str]:
    """Return a command line's words."""
    text = words.replace("SITE", str(site)).replace("SHARED", str(shared))
    return text.split()


# ---- what must hold ----

KNOWN_LEFTOVERS: Final = (
    r"\.fsqueue-doctor-[0-9a-f]{12}(/.*)?",  # some empty files of the probes, killed within 0.1 s
    r"\.pool\.prom\.\d+-[0-9a-f]{12}",  # a page of text, in a directory that is not a pool's
)
"""What is left outside pools and stores, and never removed."""


def settle(root: Path, handler: Handler | None = None) -> None:
    """Let a fresh worker finish the pool, clean up, and check what is left."""
    pool = open_pool(str(root))
    work_until_done(pool, handler=handler or Trivial())
    assert state_counts(pool).keys() <= {"done", "failed"}
    ended = names_in(pool, State.DONE, State.FAILED)
    assert len({name.id for name in ended}) == len(ended)
    for name in names_in(pool, State.DONE):
        assert len(errors_of(pool, name)) >= name.attempt
    assert not (found := problems(pool)), found
    assert not any(name.living for name in lease_names(pool))
    assert not (left := leftovers(pool)), left


def errors_of(pool: PoolDirectory, name: ClaimName) -> list[str]:
    """Return the records of a claim's attempts."""
    records = atomic.names(pool.directory("errors"))
    return [text for text in records if text.startswith(f"{name.id}.a")]


def leftovers(pool: PoolDirectory) -> list[str]:
    """Return what is private in a pool when `fsqueue clean` has removed what it can.

    An empty directory that keeps an abandoned plan from getting a number stays, by design.
    """
    clock = Clock()
    cleaner = Cleaner(pool, older_than_s=0.0, clock=clock)
    for _ in range(3):
        for each in cleaner.look():
            remove(pool, each)
        clock.forward(pool.lease_s / 2)
    for each in cleaner.look():
        remove(pool, each)
    private = (path for path in Path(pool.root).rglob(".*") if path.parent.name != "plans")
    return sorted(str(path.relative_to(pool.root)) for path in private)


def check_settles(handler: str = "", *, done: int | None = None) -> Callable[[Path], None]:
    """Return a check that all claims of SITE/pool end well, `done` of them done."""

    def settled(site: Path) -> None:
        settle(site / "pool", load_handler(handler) if handler else None)
        if done is not None:
            assert state_counts(open_pool(f"{site}/pool")).get("done", 0) == done

    return settled


def visible(disk: Disk, rough: Sequence[str]) -> Disk:
    """Return the public part outside the pool, without what is `rough`."""
    return {
        name: data
        for name, data in disk.items()
        if not any(part.startswith(".") for part in name.split("/"))
        and not name.startswith(("pool/", *rough))
    }


def unknown_leftovers(disk: Disk, rough: Sequence[str]) -> list[str]:
    """Return what is left that is private and not known to be left, outside of pool and store."""
    return [
        name
        for name in disk
        if re.search(r"(^|/)\.", name)
        and not name.startswith(("pool/", "store/", *rough))
        and not is_known_leftover(name)
    ]


def is_known_leftover(name: str) -> bool:
    """Return whether this is known to be left, and harmless."""
    return any(re.fullmatch(pattern, name) for pattern in KNOWN_LEFTOVERS)
