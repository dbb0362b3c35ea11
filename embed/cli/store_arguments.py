"""The arguments and options that the commands on a store share."""

from __future__ import annotations

import os
from typing import Any

import click

from fsqueue import UsageError


def store_argument(command: Any) -> Any:
    """Add the argument STORE, whose default is FSQUEUE_STORE."""
    return click.argument("root", metavar="STORE", type=click.Path(), envvar="FSQUEUE_STORE")(
        command
    )


def space_options(command: Any) -> Any:
    """Add --collection and --model, which select a space."""
    command = click.option(
        "--model", metavar="NAME", help="Model, if the collection has vectors of several."
    )(command)
    return click.option(
        "--collection", default="default", show_default=True, help="Collection of STORE."
    )(command)


def split_store(second: str, words: tuple[str, ...], default: str | None = None) -> tuple[str, str]:
    """Return STORE and the argument after it.

    FSQUEUE_STORE is the default of the first, and `default` that of the second, which usage errors
    call `second`.
    """
    preset, rest = os.environ.get("FSQUEUE_STORE"), list(words)
    has_store = len(rest) == 2 or (rest and (not preset or (default and _is_store(rest[0]))))
    root = rest.pop(0) if has_store else preset
    other = rest or ([default] if default else [])
    if not root or len(other) != 1:
        raise UsageError(f"give STORE and {second}, in this order. See --help.")
    return root, other[0]


def _is_store(path: str) -> bool:
    return os.path.isfile(f"{path}/store.json")
