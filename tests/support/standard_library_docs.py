"""Some hundred real documents that every Python brings along: what its modules, its built-in
functions and chapters of its language reference say of themselves."""

from __future__ import annotations

import ast
import builtins
import os
import pydoc_data.topics
from pathlib import Path

LIBRARY = Path(os.__file__).parent
AT_LEAST = 60
"""Shorter ones say nothing that could be asked for."""
AT_MOST = 3000
"""Longer ones are left out: the test is to take seconds."""
OTHERS = "site-packages dist-packages test tests idlelib lib2to3 ensurepip encodings".split()


def documents() -> dict[str, str]:
    """Return documents by name, such as `module-csv`, `builtin-sorted` and `chapter-lambda`."""
    found = {f"module-{name}": text for name, text in _modules()}
    for name in dir(builtins):
        thing = getattr(builtins, name)
        if not (isinstance(thing, type) and issubclass(thing, BaseException)):
            found[f"builtin-{name}"] = getattr(thing, "__doc__", None) or ""
    for name, text in pydoc_data.topics.topics.items():
        found[f"chapter-{name}"] = text
    return {name: text for name, text in found.items() if AT_LEAST <= len(text) <= AT_MOST}


def write(folder: Path) -> list[Path]:
    """Write each document to a file of its name."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.txt" for name in documents()]
    for path, text in zip(paths, documents().values(), strict=True):
        path.write_text(text, encoding="utf-8")
    return paths


def _modules() -> list[tuple[str, str]]:
    found = []
    for path in sorted(LIBRARY.rglob("*.py")):
        parts = path.relative_to(LIBRARY).with_suffix("").parts
        if not set(parts) & set(OTHERS) and not any(part.startswith("_") for part in parts[:1]):
            text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            found.append((".".join(parts).removesuffix(".__init__"), text))
    return found
