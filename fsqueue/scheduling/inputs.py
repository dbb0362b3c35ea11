"""The files that INPUT arguments name."""

from __future__ import annotations

import os
from collections.abc import Sequence

from fsqueue.errors import UsageError
from fsqueue.pool.names import natural


def expand_inputs(arguments: Sequence[str]) -> list[str]:
    """Return absolute paths for INPUT arguments: a file, a directory's files, or @FILE's lines.

    Raises UsageError for `-`: a stream cannot be read again by another worker.
    """
    found: list[str] = []
    for argument in arguments:
        if argument == "-":
            raise UsageError(
                "the input '-' (standard input) cannot be planned: claims name byte ranges of a "
                "file that every worker can read, and a stream is gone once read. Save it where "
                "the workers can see it, then plan that file."
            )
        if argument.startswith("@"):
            found += _listed(argument[1:])
        elif os.path.isdir(argument):
            inside = (f"{argument}/{name}" for name in sorted(os.listdir(argument), key=natural))
            found += [path for path in inside if _is_input(path)]
        else:
            found.append(argument)
    absolute = [os.path.abspath(path) for path in found]
    return list(dict.fromkeys(absolute))


def _listed(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            lines = [line.rstrip("\r\n") for line in file]
    except (OSError, ValueError) as error:  # ValueError: the path holds a NUL
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"@{path} cannot be read: {reason}. Write one path per line.") from error
    if any("\0" in line for line in lines):
        raise UsageError(
            f"@{path} holds NUL bytes: it is not a list of paths. Write one path per line."
        )
    base = os.path.dirname(os.path.abspath(path))
    return [os.path.join(base, line) for line in lines if line.strip() and line[0] != "#"]


def _is_input(path: str) -> bool:
    return not os.path.basename(path).startswith(".") and os.path.isfile(path)
