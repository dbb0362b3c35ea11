"""Parse what other processes wrote, trusting none of it.

A file in a pool may be cut, edited or hostile. What does not have the expected form raises
`PoolError` or is left out; text for a terminal is made printable first.
"""

from __future__ import annotations

import json
from typing import Any, Final

from fsqueue.errors import PoolError
from fsqueue.storage import atomic

FACTS_MAX: Final = 1 << 20
"""Size limit of small JSON files, such as statuses; claims and error records may be longer."""

NUMBER_MAX: Final = 1e24

_raw_decode: Final = json.JSONDecoder().raw_decode


def read_json(
    path: str, *, patience_s: float = 2.0, limit: int = atomic.READ_LIMIT
) -> dict[str, Any]:
    """Return the JSON object in `path`; PoolError if its bytes are anything else."""
    return parse_json(path, atomic.read(path, patience_s=patience_s, limit=limit))


def parse_json(path: str, data: bytes) -> dict[str, Any]:
    """Return the JSON object that was read from `path`; PoolError if it is anything else."""
    try:
        text = data.decode().strip(" \t\r\n")
        value, end = _raw_decode(text)  # like `json.loads`, three calls less per claim
        if end < len(text):
            raise json.JSONDecodeError("Extra data", text, end)
    except (ValueError, RecursionError) as error:
        raise PoolError(
            f"{path} is not JSON ({error}): it was edited, cut or damaged. Restore or remove it."
        ) from error
    if not isinstance(value, dict):
        raise PoolError(f"{path} is not a JSON object: it was edited or damaged. Remove it.")
    return value


def number(value: Any) -> float | None:
    """Return a number from a file if it is safe to calculate with.

    JSON also holds true, NaN, and integers too large for any float.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if -NUMBER_MAX < value < NUMBER_MAX else None


def printable(text: object, limit: int = 300) -> str:
    """Return `text` on one line, safe for any terminal: unprintable characters as escapes."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text)[:limit])
