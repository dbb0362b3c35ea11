"""The files that INPUT arguments name.

R47 Each thing in a named directory is planned, or counted and named as left out. What is broken (a
    link that leads nowhere, a file that cannot be read) is an input that cannot be planned, as if
    it had been named; sub-directories, hidden files and companions are left out, and said to be.

A *companion* is an index or a checksum of another input beside it: `a.fa.fai` where `a.fa` is
planned. It is left out wherever it was found: a shell's `dir/*` names it, too. On its own it is an
input like any other.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from fsqueue.errors import UsageError
from fsqueue.pool.names import natural

COMPANIONS: Final = tuple(
    ".fai .gzi .csi .tbi .bai .crai .idx .index .dict .md5 .md5sum .sha1 .sha256 .sha512".split()
)
"""What the names of companions end with, after the whole name of the file they belong to."""
NAMED: Final = 5
"""How many things of a kind a note names."""


@dataclass(slots=True)
class Inputs:
    """What INPUT arguments name: absolute paths, each once, and what was found beside them."""

    paths: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    """What is in a named directory and cannot be planned, a line each."""
    left_out: dict[str, list[str]] = field(default_factory=dict)
    """What is in a named directory and was left out, by what it is."""

    @property
    def notes(self) -> list[str]:
        """What was left out, a line for each kind of thing."""
        return [f"left out: {_counted(what, names)}" for what, names in self.left_out.items()]

    def leave_out(self, what: str, path: str) -> None:
        """Count a thing that is not planned."""
        self.left_out.setdefault(what, []).append(path)


SUB_DIRECTORY: Final = "sub-directory"
LINKED: Final = "link to a directory"
HIDDEN: Final = "hidden file"
SPECIAL: Final = "device, pipe or socket"
COMPANION: Final = "index or checksum of an input"
PLURALS: Final = {
    SUB_DIRECTORY: "sub-directories",
    LINKED: "links to directories",
    HIDDEN: "hidden files",
    SPECIAL: "devices, pipes and sockets",
    COMPANION: "indexes and checksums of inputs",
}


def _counted(what: str, paths: Sequence[str]) -> str:
    if what == COMPANION:  # harmless: counted, not named
        endings = sorted({os.path.splitext(path)[1] for path in paths})
        shown = ", ".join(endings)
    else:
        shown = ", ".join(paths[:NAMED]) + (", ..." if len(paths) > NAMED else "")
    counted = f"1 {what}" if len(paths) == 1 else f"{len(paths):,} {PLURALS[what]}"
    hint = "; --recursive plans their files" if what == SUB_DIRECTORY else ""
    return f"{counted} ({shown}){hint}"


def find_inputs(arguments: Iterable[str], *, recursive: bool = False) -> Inputs:
    """Return what INPUT arguments name: a file, a directory's files, or what @FILE lists.

    Raises UsageError for `-`: a stream cannot be read again by another worker.
    """
    found = Inputs()
    for argument in arguments:
        if argument == "-":
            raise UsageError(
                "the input '-' (standard input) cannot be planned: claims name byte ranges of a "
                "file that every worker can read, and a stream is gone once read. Save it where "
                "the workers can see it, then plan that file."
            )
        if argument.startswith("@"):
            found.paths += map(os.path.abspath, _listed(argument[1:]))
        elif os.path.isdir(argument):
            _look_into(os.path.abspath(argument), found, recursive=recursive)
        else:
            found.paths.append(os.path.abspath(argument))
    unique = dict.fromkeys(found.paths)
    found.paths = []
    for path in unique:
        if _is_companion(path, unique):
            found.leave_out(COMPANION, path)
        else:
            found.paths.append(path)
    return found


def _look_into(directory: str, found: Inputs, *, recursive: bool) -> None:
    try:
        names = sorted(os.listdir(directory), key=natural)
    except OSError as error:
        found.broken.append(f"{directory}: cannot be listed ({error.strerror}).")
        return
    for name in names:
        path = f"{directory}/{name}"
        if name.startswith("."):
            found.leave_out(HIDDEN, path)
            continue
        try:
            mode = os.stat(path).st_mode
        except OSError as error:
            what = "is a link that leads nowhere" if os.path.islink(path) else "cannot be read"
            found.broken.append(f"{path}: {what} ({error.strerror}).")
            continue
        if stat.S_ISDIR(mode) and recursive and not os.path.islink(path):
            _look_into(path, found, recursive=True)
        elif stat.S_ISDIR(mode):
            found.leave_out(LINKED if os.path.islink(path) and recursive else SUB_DIRECTORY, path)
        elif not stat.S_ISREG(mode):
            found.leave_out(SPECIAL, path)
        elif not os.access(path, os.R_OK):
            found.broken.append(f"{path}: you may not read it.")
        else:
            found.paths.append(path)


def _is_companion(path: str, others: Iterable[str]) -> bool:
    stem, ending = os.path.splitext(path)
    return ending in COMPANIONS and stem in others


def _listed(path: str) -> list[str]:
    """Return the paths that a list names, relative ones from the list's own directory."""
    try:
        # An editor on Windows puts a byte order mark first, which is not part of a name.
        with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
            lines = [line.rstrip("\r\n") for line in file]
    except (OSError, ValueError) as error:  # ValueError: the path holds a NUL
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"@{path} cannot be read: {reason}. Write one path per line.") from error
    if any("\0" in line for line in lines):
        raise UsageError(
            f"@{path} holds NUL bytes: it is not a list of paths in UTF-8. Write one path per line."
        )
    base = os.path.dirname(os.path.abspath(path))
    return [os.path.join(base, line) for line in lines if line.strip() and line[0] != "#"]
