"""What a Python file defines that can be run, found by reading it and not by running it."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from dataclasses import dataclass

from fsqueue.errors import UsageError


@dataclass(frozen=True, slots=True)
class Defined:
    """What a file defines that can be run, found without running it."""

    name: str
    is_class: bool
    suffix: str | None = None


def find_defined(data: bytes, path: str, wanted: str | None) -> Defined:
    """Return what of a Python file is to run: `wanted`, else its Handler class or its `run`.

    Raises UsageError if there is no such thing, or more than one.
    """
    tree = parse(data, path)
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    handlers: list[str] = []
    for node in classes:
        bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
        if any(base.endswith("Handler") or base in handlers for base in bases):
            handlers = [*(name for name in handlers if name not in bases), node.name]
    others = {name for node in tree.body for name in _assigned(node)}
    found = [*handlers, *(["run"] if "run" in functions or "run" in others else [])]
    if wanted is None and len(found) != 1:
        raise UsageError(
            f"{path} defines {' and '.join(found)}. Say which is to run: --file "
            f"{os.path.basename(path)}:{found[0]}"
            if found
            else f"{path} defines neither run(work) nor a subclass of fsqueue.Handler. Define "
            f"run, or name another function: --file {os.path.basename(path)}:NAME"
        )
    name = wanted or found[0]
    if any(node.name == name for node in classes):
        return Defined(name, is_class=True)
    if name not in functions and name not in others:
        raise UsageError(
            f"{path} defines no {name!r} at its top level; it defines: "
            f"{', '.join([*(node.name for node in classes), *functions]) or 'nothing'}."
        )
    if name in functions:
        _refuse_arguments(functions[name], "setup" in functions or "setup" in others, path)
    return Defined(name, is_class=False, suffix=_suffix_in(tree))


def parse(data: bytes, path: str) -> ast.Module:
    """Return the syntax tree of a file. Raises UsageError, with the line, if it is not Python."""
    try:
        return ast.parse(data, path)
    except (SyntaxError, ValueError, RecursionError) as error:
        line = getattr(error, "lineno", None)
        where = f", line {line}" if line else ""
        reason = getattr(error, "msg", None) or error
        raise UsageError(f"{path}{where}: is not Python ({reason}).") from error


def _assigned(node: ast.stmt) -> Iterator[str]:
    """Yield the names that a statement binds, other than by def and class."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield from ((alias.asname or alias.name) for alias in node.names)
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        yield from (target.id for target in targets if isinstance(target, ast.Name))


def _refuse_arguments(function: ast.FunctionDef, has_setup: bool, path: str) -> None:
    arguments = [*function.args.posonlyargs, *function.args.args]
    needed = len(arguments) - len(function.args.defaults)
    if not arguments and function.args.vararg is None:
        raise UsageError(
            f"{path}, line {function.lineno}: {function.name}() takes no argument; it is called "
            f"with the work: def {function.name}(work)"
        )
    if needed > 2 or (needed == 2 and not has_setup):
        raise UsageError(
            f"{path}, line {function.lineno}: {function.name} takes {needed} arguments; it is "
            f"called with the work, and with what setup() returns if the file defines setup()."
        )


def _suffix_in(tree: ast.Module) -> str | None:
    for node in tree.body:
        if "suffix" in _assigned(node):
            value = getattr(node, "value", None)
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                return value.value
    return None
