"""Create and open pools and their spools.

A pool's settings are written once and never change; a spool's file describes the GPU it is for.

R46 What is asked for holds or is refused: a lease or a number of attempts that is not the pool's is
    refused when planning into a pool that exists, and so is a lease that no pool could work with.
"""

from __future__ import annotations

import json
import os
import secrets
import stat
import time
from dataclasses import asdict, dataclass
from typing import Final

from fsqueue.errors import PoolError, UsageError
from fsqueue.pool.layout import DIRECTORIES, FORMAT, Layout
from fsqueue.pool.names import SPOOL, natural
from fsqueue.storage import atomic, directories, permissions
from fsqueue.storage.untrusted import FACTS_MAX, read_json

LEASE_S: Final = 30.0
LEASE_MIN_S: Final = 1.0
"""A shorter one would end workers that a busy disk or scheduler holds up for a moment."""
ATTEMPTS_MAX: Final = 3
NUMBER_MAX: Final = 1e9
"""Numbers from a file must be below this: JSON admits NaN, infinity and any integer."""


@dataclass(frozen=True, slots=True)
class PoolDirectory(Layout):
    """An open pool: its paths and its settings."""

    id: str
    lease_s: float
    attempts_max: int


@dataclass(frozen=True, slots=True)
class Spool:
    """One spool: the GPU model it is for, and that model's speed relative to an RTX 3090."""

    name: str
    model: str
    weight: float
    why: str = ""
    memory_gib: float | None = None
    """The GPU's memory, as far as it is known; None also for CPUs."""


def refuse_other_settings(
    pool: PoolDirectory, lease_s: float | None, attempts_max: int | None
) -> None:
    """Raise UsageError if the pool was made with another lease or number of attempts (R46)."""
    for option, asked, found in (
        ("--lease", lease_s, pool.lease_s),
        ("--attempts", attempts_max, pool.attempts_max),
    ):
        if asked is not None and asked != found:
            unit = " s" if option == "--lease" else ""
            raise UsageError(
                f"{option} {asked:g}{unit}: {pool.root} was made with {found:g}{unit}, which its "
                f"workers rely on and which never changes. Leave {option} out, or plan into a new "
                f"pool."
            )


def refuse_bad_settings(lease_s: float | None, attempts_max: int | None) -> None:
    """Raise UsageError for settings that no pool could work with (R46)."""
    if lease_s is not None and not LEASE_MIN_S <= lease_s < NUMBER_MAX:
        raise UsageError(
            f"--lease {lease_s:g} s: must be at least {LEASE_MIN_S:g} s, or living workers would "
            f"be taken for dead. The default is {LEASE_S:g} s; fsqueue doctor DIR recommends one."
        )
    if attempts_max is not None and attempts_max < 1:
        raise UsageError(f"--attempts {attempts_max}: must be 1 or more.")


def create_pool(
    root: str, *, lease_s: float = LEASE_S, attempts_max: int = ATTEMPTS_MAX
) -> PoolDirectory:
    """Create a pool at `root`, or open the one that is there.

    The process that publishes pool.json first decides its settings; others then open it.
    """
    root = os.path.abspath(root)
    if not os.path.lexists(f"{root}/pool.json"):
        _claim_directory(root)
        for name in DIRECTORIES:
            directories.make(f"{root}/{name}", sticky=name in ("spools", "outputs"))
        directories.make(Layout(root).ended_leases)
        settings = {
            "format": FORMAT,
            "id": secrets.token_hex(6),
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "lease_s": lease_s,
            "attempts_max": attempts_max,
        }
        atomic.publish(f"{root}/pool.json", json.dumps(settings, indent=1).encode() + b"\n")
    return open_pool(root)


def _claim_directory(root: str) -> None:
    """Make the directory that becomes the pool, or use one that is empty and trusted."""
    try:
        os.makedirs(root, mode=0o755, exist_ok=True)
        present = {name for name in os.listdir(root) if not name.startswith(".")}
        if permissions.trusts_groups() and os.stat(root).st_uid == os.geteuid():
            os.chmod(root, 0o3770)
        facts = os.stat(root)
    except (FileExistsError, NotADirectoryError) as error:
        raise UsageError(
            f"{root} cannot become a pool: it is a file, or inside one. The pool comes first, "
            f"then the inputs: fsqueue plan embed NEW_DIRECTORY INPUT..."
        ) from error
    except OSError as error:
        raise PoolError(
            f"{root} cannot become a pool: {error.strerror}. Use one that you can write to."
        ) from error
    if "pool.json" not in present and present - set(DIRECTORIES):
        raise UsageError(
            f"{root} is not empty and is not a pool; fsqueue never mixes its files with yours. "
            f"The pool comes first, then the inputs: fsqueue plan embed NEW_DIRECTORY INPUT..."
        )
    permissions.trust_group_of(facts)
    permissions.require_trusted(root, facts, os.geteuid())


def open_pool(root: str) -> PoolDirectory:
    """Open the pool at `root`. Raises UsageError if there is none, PoolError if not trusted."""
    root = os.path.abspath(root)
    layout = Layout(root)
    try:
        facts = os.stat(root)
        permissions.trust_group_of(facts)
        settings = read_json(layout.settings, patience_s=0.0, limit=FACTS_MAX)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(
            f"{root} is not a pool: it has no pool.json. Check the path, or create the pool: "
            f"fsqueue plan embed {root} INPUT... --model MODEL"
        ) from error
    except PermissionError as error:
        raise PoolError(f"{root} cannot be read: {error.strerror}. Ask its owner.") from error
    _refuse_open_directories(layout, facts)
    if settings.get("format") != FORMAT:
        raise PoolError(
            f"{layout.settings} has format {settings.get('format')!r}, and this fsqueue reads only "
            f"{FORMAT}. Use the version of fsqueue that created the pool."
        )
    id, lease_s = settings.get("id"), settings.get("lease_s")
    attempts_max = settings.get("attempts_max")
    if (
        not isinstance(id, str)
        or not isinstance(lease_s, int | float)
        or not 0 < lease_s < NUMBER_MAX
        or not isinstance(attempts_max, int)
        or attempts_max < 1
    ):
        raise PoolError(
            f"{layout.settings} lacks a valid id, lease_s or attempts_max: it was edited or "
            f"damaged. Restore it; the claims are intact."
        )
    return PoolDirectory(root, id, float(lease_s), attempts_max)


def _refuse_open_directories(layout: Layout, root: os.stat_result) -> None:
    """Raise PoolError if other users could put files into the pool's directories.

    Listing them reports those that are missing or are not directories.
    """
    permissions.require_trusted(layout.root, root, os.geteuid())
    for name in DIRECTORIES:
        try:
            facts = os.lstat(layout.directory(name))
        except FileNotFoundError:
            continue  # RACE: a network mount may not show it yet, just after the pool was created.
        if stat.S_ISDIR(facts.st_mode):
            permissions.require_trusted(layout.directory(name), facts, os.geteuid())


# ---- spools ----


def add_spool(pool: PoolDirectory, spool: Spool) -> Spool:
    """Create a spool, or return the one of that name: the first planner's weight stands."""
    directories.make(pool.spool(spool.name))
    data = json.dumps(asdict(spool), indent=1).encode() + b"\n"
    if not os.path.exists(pool.spool_file(spool.name)):
        atomic.publish(pool.spool_file(spool.name), data)
    return read_spool(pool, spool.name)


def read_spool(pool: PoolDirectory, name: str) -> Spool:
    """Return a spool as spools/NAME.json describes it; PoolError if that is not valid."""
    facts = read_json(pool.spool_file(name), limit=FACTS_MAX)
    model, weight, why = facts.get("model"), facts.get("weight"), facts.get("why", "")
    memory = facts.get("memory_gib")  # spools of earlier versions have none
    if (
        not isinstance(model, str)
        or not isinstance(why, str)
        or not isinstance(weight, int | float)
        or not 0 < weight < NUMBER_MAX
        or not (memory is None or isinstance(memory, int | float) and memory > 0)
    ):
        raise PoolError(
            f"{pool.spool_file(name)} lacks a model or a positive weight: it was edited or cut. "
            f'Write {{"model": "RTX 3090", "weight": 1.0}} into it.'
        )
    return Spool(name, model, float(weight), why, None if memory is None else float(memory))


def spool_names(pool: PoolDirectory) -> list[str]:
    """Return the names of all spools, in natural order."""
    found = {name[:-5] for name in atomic.names(pool.directory("spools")) if name.endswith(".json")}
    return sorted(filter(SPOOL.fullmatch, found), key=natural)
