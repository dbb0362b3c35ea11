"""The bytes of a Python file: where they are found, how they are pinned, and how they are loaded.

Nothing is imported from the file's own place: what is executed are the bytes that were checked.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from fsqueue.errors import ClaimImpossible, FsqueueError, NotSupportedError, UsageError
from fsqueue.handler import where_raised
from fsqueue.pool.names import slug
from fsqueue.python_file.definitions import Defined, find_defined, parse
from fsqueue.storage import atomic

SIZE_MAX: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class Code:
    """The bytes of a Python file, and what of it is to run."""

    place: str
    """The file's absolute path, or the module's name."""
    path: str
    """Where the bytes were read."""
    data: bytes
    defined: Defined
    kept_name: str | None
    """Its name in the pool's code/; None for a module that workers import by its name."""

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def shown(self) -> str:
        return f"{self.place}:{self.defined.name}"

    def load(self, *, planning: bool = False) -> ModuleType:
        """Execute it as a module. Raises NotSupportedError, or UsageError when planning."""
        with explained(self, "importing it", planning=planning), loading():
            if self.kept_name is None:
                return importlib.import_module(self.place)
            name = f"{slug(Path(self.place).stem)}_{self.sha256[:8]}"
            spec = importlib.util.spec_from_loader(name, _Pinned(self.path, self.data))
            assert spec is not None
            module = importlib.util.module_from_spec(spec)
            module.__file__ = self.place
            sys.modules[name] = module  # as dataclasses and pickle expect
            try:
                assert spec.loader is not None
                spec.loader.exec_module(module)
            except BaseException:
                del sys.modules[name]
                raise
            return module


class _Pinned(importlib.abc.SourceLoader):
    """Load a module from bytes that were read and checked before, and from nothing else."""

    def __init__(self, path: str, data: bytes) -> None:
        self._path = path
        self._data = data

    def get_filename(self, fullname: str) -> str:
        return self._path

    def get_data(self, path: str | bytes) -> bytes:
        return self._data


@contextmanager
def explained(code: Code, what: str, *, planning: bool = False) -> Iterator[None]:
    """Turn what the code raises before any claim runs into one line that says where (R73)."""
    try:
        yield
    except FsqueueError:
        raise
    except Exception as error:
        refusal = f"{what} failed: {where_raised(error)}"
        if isinstance(error, ImportError):
            refusal += ". What it imports has to be installed where the workers run"
        kind = UsageError if planning else NotSupportedError
        raise kind(f"{code.place}: {refusal}") from error


_LOADING: list[None] = []


@contextmanager
def loading() -> Iterator[None]:
    """Mark that a file of the user's is being imported: nothing may be planned or run meanwhile."""
    _LOADING.append(None)
    try:
        yield
    finally:
        _LOADING.pop()


def refuse_while_loading(what: str) -> None:
    """Raise UsageError if `what` was called by the import of a file that a worker runs."""
    if _LOADING:
        raise UsageError(
            f"{what} was called while the file was imported to run a function of it. Put it under: "
            f'if __name__ == "__main__":'
        )


# ---- finding it ----


def read_file(text: str) -> Code:
    """Return the code that `--file FILE[:NAME]` names. Raises UsageError."""
    path, wanted = text, None
    if not os.path.exists(path) and ":" in text:
        path, _, wanted = text.rpartition(":")
    path = os.path.abspath(path)
    data = read_source(path)
    defined = find_defined(data, path, wanted)
    refuse_neighbours(data, path)
    kept_name = f"{slug(Path(path).stem)}-{hashlib.sha256(data).hexdigest()[:12]}.py"
    return Code(path, path, data, defined, kept_name)


def read_source(path: str) -> bytes:
    """Return the bytes of a Python file. Raises UsageError."""
    try:
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{path}: {reason}. --file takes a Python file.") from error
    if len(data) > SIZE_MAX:
        raise UsageError(f"{path} is {len(data):,} bytes long; is it a Python file?")
    return data


def read_function(text: str) -> Code:
    """Return the code that `--function MODULE:NAME` names. Raises UsageError."""
    module, _, name = text.partition(":")
    if not (name and all(part.isidentifier() for part in [*module.split("."), name])):
        raise UsageError(f"--function {text!r}: write MODULE:NAME, such as my_package.embed:run.")
    if not is_importable(module.partition(".")[0]):
        raise UsageError(
            f"workers cannot import the module {module!r}: it is not installed here. Install it, "
            f"or give its file: --file FILE.py:{name}"
        )
    try:
        return importable(module, name)
    except NotSupportedError as error:
        raise UsageError(str(error)) from error


def importable(module: str, name: str) -> Code:
    """Return the code of a module that is found by its name, which is not executed yet."""
    try:
        spec = importlib.util.find_spec(module)
    except Exception as error:  # the packages that it is in are executed
        raise NotSupportedError(f"{module} cannot be imported: {error!r}") from error
    if spec is None or not (spec.origin or "").endswith(".py"):
        raise NotSupportedError(
            f"no module {module} with a Python file is installed here ({sys.prefix}). Install it, "
            f"or set PYTHONPATH"
        )
    assert spec.origin is not None
    data = read_source(spec.origin)
    return Code(module, spec.origin, data, find_defined(data, spec.origin, name), None)


def kept(path: str, options: Mapping[str, Any]) -> Code:
    """Return the code that a pool keeps; the planned file stands in for it if it is gone."""
    try:
        data = atomic.read(path)
    except FileNotFoundError as error:
        # RACE: none; something outside fsqueue removed it
        try:
            data = Path(options["code"]).read_bytes()
        except OSError:
            raise error from None
    if hashlib.sha256(data).hexdigest() != options["sha256"]:
        raise ClaimImpossible(
            f"{path} is not what was planned (its SHA-256 differs), so nothing of it is run. "
            f"Restore it from {options['code']}, or plan again"
        )
    defined = Defined(options["name"], options["is_class"])
    return Code(options["code"], path, data, defined, options["kept"])


def is_importable(name: str) -> bool:
    """Return whether a worker on this machine can import a module or package by its name.

    What only the directory of the running script provides cannot be: workers start elsewhere.
    """
    if name in sys.stdlib_module_names:
        return True
    path = sys.path if sys.flags.safe_path else sys.path[1:]
    if importlib.machinery.PathFinder.find_spec(name, [entry for entry in path if entry]):
        return True
    others = (f for f in sys.meta_path if f is not importlib.machinery.PathFinder)
    return any(finder.find_spec(name, None) is not None for finder in others)


def refuse_neighbours(data: bytes, path: str) -> None:
    """Raise UsageError if the file imports a module that lies beside it (R71)."""
    directory = os.path.dirname(path)
    for node in ast.walk(parse(data, path)):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            names = [node.module] if node.module and not node.level else ["." * node.level]
        for name in names:
            top = name.partition(".")[0]
            beside = [f"{directory}/{top}.py", f"{directory}/{top}/__init__.py"]
            if top and (is_importable(top) or not any(map(os.path.exists, beside))):
                continue
            raise UsageError(
                f"{path}, line {node.lineno}: imports {name}, which lies beside it; only the one "
                f"file is planned and pinned. Put both into one file, or install {top or 'it'} "
                f"where the workers run."
            )
