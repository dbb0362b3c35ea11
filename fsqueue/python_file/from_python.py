"""Find again, as workers will, a function or class that a program gives to `fsqueue.plan`."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable
from typing import Any

from fsqueue.errors import UsageError
from fsqueue.python_file.code import is_importable, read_source
from fsqueue.python_file.definitions import parse


def options_of(code: Callable[..., object]) -> dict[str, Any]:
    """Return the options that plan a function or Handler class which the caller holds.

    Raises UsageError for one that no worker could find again.
    """
    name, home = getattr(code, "__qualname__", ""), getattr(code, "__module__", "")
    shown = name or repr(code)
    if not name.isidentifier():
        raise UsageError(
            f"{shown} cannot be planned: workers find a function by its name, so it has to be "
            f"defined with `def` at the top level of a file."
        )
    module = sys.modules.get(home)
    path = getattr(module, "__file__", None)
    if home == "__main__":
        if not path or not path.endswith(".py"):
            raise UsageError(
                f"{shown} is defined in a notebook or an interactive session, where workers cannot "
                f"find it. Write it to a file (in a notebook: %%writefile my_work.py), then import "
                f"it from there."
            )
        _refuse_unguarded(path)
        return {"file": f"{path}:{name}"}
    if is_importable(home.partition(".")[0]):
        return {"function": f"{home}:{name}"}
    if "." not in home and path and path.endswith(".py"):
        return {"file": f"{path}:{name}"}
    raise UsageError(
        f"workers cannot import {home}, where {shown} is defined: it is not installed. Install it "
        f"(pip install -e .), or set PYTHONPATH."
    )


def _refuse_unguarded(path: str) -> None:
    """Raise UsageError if the script that plans would do so again when a worker imports it."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") == "__main__":
            break
        frame = frame.f_back
    if frame is None:
        return
    for node in parse(read_source(path), path).body:
        end = node.end_lineno or node.lineno
        if node.lineno <= frame.f_lineno <= end and not isinstance(node, ast.If):
            raise UsageError(
                f"{path}, line {frame.f_lineno}: workers import this file to run the function, and "
                f'would plan again. Put this under: if __name__ == "__main__":'
            )
