"""Run a Python function, or a Handler class, from a file of the user's: no package is needed.

    fsqueue plan python POOL INPUT... --file embed_my_way.py[:NAME]

The file holds `run(work)`, and optionally `setup()` and `close()`; or a subclass of Handler. What
`setup` returns is the second argument of `run`, if it takes two.

Rules:

R70 What runs is what was planned. The file's bytes are kept in the pool's code/ and pinned by their
    SHA-256 in every claim; a worker runs the kept bytes, after it has checked them. If the file
    itself can be seen and differs, or the kept one does, the claim fails by name before anything of
    it runs. Where the file cannot be seen, the kept bytes are enough.
R71 The one file is all there is: what it imports must be installed where the workers run. A module
    beside it is refused when planning, because nothing would pin it.
R72 The code is part of an input's version (`scheduling.supersede`): planning again after an edit
    replaces the claims that have not run.
R73 No claim is charged for code that cannot be loaded or set up: the claim goes back, and the
    worker leaves claims of its kind to others.

A function that workers can import by its name (`--function MODULE:NAME`) is not kept: it is
imported, if its module's file has the bytes that it had when planned. Otherwise its claims are left
to workers that have those.

Nothing of the file is executed by planning a function. A Handler class is created there, because it
decides how inputs are cut.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from fsqueue.errors import (
    ClaimFailed,
    ClaimImpossible,
    FsqueueError,
    NotSupportedError,
    UsageError,
)
from fsqueue.handler import (
    Handler,
    Item,
    Option,
    Source,
    Work,
    check_unchanged,
    complete_options,
    where_raised,
)
from fsqueue.pool.layout import SUFFIX
from fsqueue.pool.names import slug
from fsqueue.storage import atomic
from fsqueue.storage.operation_count import costs

DEFAULT_SUFFIX: Final = ".out"
SIZE_MAX: Final = 4 << 20
KIND_LENGTH: Final = 12
EXAMPLE: Final = "fsqueue plan python POOL INPUT... --file FILE.py"


class PythonFile(Handler):
    """Plan a function or a Handler class of a Python file, and run it once per input."""

    suffix = DEFAULT_SUFFIX
    personal = True
    options = (
        Option(
            "file",
            None,
            "The Python file, such as embed.py, with run(work) and optionally setup(), or with a "
            "Handler class; embed.py:NAME for one of another name.",
        ),
        Option(
            "function",
            None,
            "Instead of --file: a function or Handler class that every worker can import, as "
            "MODULE:NAME.",
        ),
        Option(
            "suffix",
            None,
            "How the names of outputs end, such as .npy. Default: `suffix = ...` in the file, else "
            ".out.",
        ),
        Option(
            "set",
            (),
            "Give NAME=VALUE to the code, as work.options[NAME]. Numbers, true and other JSON are "
            "taken as such. Repeatable.",
        ),
    )

    def __init__(self) -> None:
        self._planned: Handler | None = None
        """The Handler class's instance in the planner."""
        self._code: _Code | None = None
        """What `prepare` read."""
        self._running: dict[tuple[str, str], Handler] = {}
        """In a worker: the instance of each code, by its hash and name."""
        self._seen: dict[str, tuple[int, int, str]] = {}
        """Size, mtime and hash of the files that were looked at."""

    # ---- planning ----

    def prepare(self, options: dict[str, Any]) -> dict[str, Any]:
        file, function = options.get("file"), options.get("function")
        if (file is None) == (function is None):
            raise UsageError(f"say which code is to run, by either --file or --function: {EXAMPLE}")
        code = _read_function(str(function)) if file is None else _read_file(file)
        defined = code.defined
        given = _read_settings(options.get("set") or ())
        suffix, decisive = options.get("suffix") or defined.suffix, given
        if defined.is_class:
            handler = _instance(code.load(planning=True), code)
            self._adopt(handler)
            given = handler.prepare(complete_options(handler, given))
            decisive = dict(handler.result_options(given))
            if handler.suffix is None:
                raise UsageError(
                    f"{code.shown} has suffix = None, so it writes no output of its own; such a "
                    f"handler has to be installed (docs/handlers.md). Give it a suffix."
                )
            suffix = options.get("suffix") or handler.suffix
        suffix = suffix or DEFAULT_SUFFIX
        if not SUFFIX.fullmatch(suffix):
            raise UsageError(
                f"the suffix {suffix!r} is not how a file's name can end here: up to three times a "
                f"dot and up to 16 letters, digits, _ or -. For example: --suffix .npy"
            )
        self.suffix = suffix
        self._code = code
        return {
            "code": code.place,
            "name": defined.name,
            "is_class": defined.is_class,
            "sha256": code.sha256,
            "kept": code.kept_name,
            "suffix": suffix,
            "options": given,
            "decisive": decisive,
        }

    def _adopt(self, handler: Handler) -> None:
        """Let the planner see what a Handler class declares."""
        self._planned = handler
        self.tier, self.requires = handler.tier, handler.requires
        self.cost_max, self.unit = handler.cost_max, handler.unit
        self.cost_per_second = handler.cost_per_second

    def result_options(self, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what decides a result beside the input and the code, which is a version (R72)."""
        named = f"{options.get('code')}:{options.get('name')}"
        decisive = {"code": named, "options": options.get("decisive")}
        if options.get("suffix", DEFAULT_SUFFIX) != DEFAULT_SUFFIX:
            decisive["suffix"] = options["suffix"]
        return decisive

    def describe(self, options: Mapping[str, Any]) -> Sequence[str]:
        return self._cutter(options).describe(options["options"])

    def gpu_memory_gib(self, options: Mapping[str, Any]) -> float:
        return self._cutter(options).gpu_memory_gib(options["options"])

    def kept_files(self, options: Mapping[str, Any]) -> Mapping[str, bytes]:
        assert self._code is not None, "prepare comes first"
        return {options["kept"]: self._code.data} if options["kept"] else {}

    def survey(self, path: str, options: Mapping[str, Any]) -> Source:
        inner = self._cutter(options)
        found = inner.survey(path, options["options"])
        key = hashlib.sha256(f"{options['sha256']} {found.key}".encode()).hexdigest()
        return replace(found, key=key, detail=found)

    def cut(
        self, sources: Sequence[Source], options: Mapping[str, Any], cost_max: int
    ) -> Iterator[Item]:
        inner = self._cutter(options)
        for item in inner.cut([source.detail for source in sources], options["options"], cost_max):
            payload = {"inputs": inner.inputs(item.payload), "payload": dict(item.payload)}
            identity = {"sha256": options["sha256"], "item": dict(item.identity)}
            yield replace(item, payload=payload, identity=identity)

    def _cutter(self, options: Mapping[str, Any]) -> Handler:
        """Return what surveys and cuts: the Handler class, or the default for a function."""
        if not options["is_class"]:
            default = Handler()
            default.name = _kind_of(options)
            return default
        if self._planned is None:  # what was planned before is being looked at again
            place, name = options["code"], options["name"]
            is_file = options["kept"] is not None
            code = (_read_file if is_file else _read_function)(f"{place}:{name}")
            if code.sha256 != options["sha256"]:
                raise NotSupportedError(f"{place} changed since it was planned; restore it.")
            self._adopt(_instance(code.load(planning=True), code))
        assert self._planned is not None
        return self._planned

    def inputs(self, payload: Mapping[str, Any]) -> list[str]:
        return [path for path in payload.get("inputs", ()) if isinstance(path, str)]

    # ---- running ----

    def run(self, work: Work) -> None:
        options = work.options
        self._refuse_changed(options)
        key = options["sha256"], options["name"]
        if key not in self._running:
            self._running[key] = self._load(options, work.code)
        inner = self._running[key]
        inner.set_up()
        work.options, work.payload = options["options"], work.payload["payload"]
        inner.run(work)
        try:
            os.stat(work.output)
        except FileNotFoundError as error:
            raise ClaimFailed(
                f"{options['name']} of {options['code']} returned without writing work.output"
            ) from error

    def _refuse_changed(self, options: Mapping[str, Any]) -> None:
        """Raise ClaimImpossible if the file can be seen and is not what was planned (R70)."""
        path = options["code"]
        if options["kept"] is None or (facts := _look_at(path)) is None:
            return
        if self._seen.get(path) != (*facts, options["sha256"]):
            try:
                found = hashlib.sha256(Path(path).read_bytes()).hexdigest()
            except OSError:
                return  # RACE: it is being replaced; what was kept is what was planned
            if found != options["sha256"]:
                raise ClaimImpossible(
                    f"{path} changed since it was planned, so nothing of it is run. Plan again to "
                    f"run the new version; the planned one is code/{options['kept']} in the pool"
                )
            self._seen[path] = (*facts, found)

    def _load(self, options: Mapping[str, Any], directory: str) -> Handler:
        name, sha256 = options["name"], options["sha256"]
        if options["kept"] is None:
            code = _importable(options["code"], name)
            if code.sha256 != sha256:
                raise NotSupportedError(
                    f"the module {options['code']} is not here what it was where it was planned "
                    f"({code.path} differs). Install the same version here, or plan again"
                )
        else:
            code = _kept(f"{directory}/{options['kept']}", options)
        if options["is_class"]:
            inner = _instance(code.load(), code)
        else:
            inner = _Function(code.load(), name, code)
        inner.attach(self.other_handler, models_max=self.models_max)
        inner.name = _kind_of(options)
        return inner

    def loaded(self) -> list[str]:
        return [
            kind
            for inner in self._running.values()
            if inner.is_set_up
            for kind in (inner.loaded() or [inner.name])
        ]

    def close(self) -> None:
        for inner in self._running.values():
            inner.close()


class _Function(Handler):
    """The function `run` of a module, with the module's `setup` and `close`."""

    def __init__(self, module: ModuleType, name: str, code: _Code) -> None:
        self._module = module
        self._code = code
        function = getattr(module, name, None)
        if not callable(function):
            raise NotSupportedError(f"{code.shown} is not a function")
        self._function: Callable[..., object] = function
        self._made: object = None

    def setup(self) -> None:
        if callable(setup := getattr(self._module, "setup", None)):
            self._made = setup()

    def run(self, work: Work) -> None:
        check_unchanged(work)
        arguments = (work, self._made) if _takes_two(self._function) else (work,)
        self._function(*arguments)

    def close(self) -> None:
        if self.is_set_up and callable(close := getattr(self._module, "close", None)):
            close()


def _takes_two(function: Callable[..., object]) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p for p in parameters if p.kind in positional and p.default is p.empty]
    return len(needed) > 1


def _instance(module: ModuleType, code: _Code) -> Handler:
    made = getattr(module, code.defined.name, None)
    if not (isinstance(made, type) and issubclass(made, Handler)):
        raise UsageError(f"{code.shown} is not a subclass of fsqueue.Handler")
    with _explained(code, f"{code.defined.name}()"):
        handler = made()
    handler.name = slug(code.defined.name.lower(), KIND_LENGTH)
    return handler


def _kind_of(options: Mapping[str, Any]) -> str:
    """Return the kind of a code's claims: the class's name, or the file's."""
    if options["is_class"]:
        return slug(options["name"].lower(), KIND_LENGTH)
    stem = Path(options["code"]).stem if options["kept"] else options["code"].rpartition(".")[2]
    named = "" if options["name"] == "run" else f"_{options['name']}"
    return slug(f"{stem}{named}".lower(), KIND_LENGTH)


# ---- the code ----


@dataclass(frozen=True, slots=True)
class _Defined:
    """What a file defines that can be run, found without running it."""

    name: str
    is_class: bool
    suffix: str | None = None


@dataclass(frozen=True, slots=True)
class _Code:
    """The bytes of a Python file, and what of it is to run."""

    place: str
    """The file's absolute path, or the module's name."""
    path: str
    """Where the bytes were read."""
    data: bytes
    defined: _Defined
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
        with _explained(self, "importing it", planning=planning), loading():
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
def _explained(code: _Code, what: str, *, planning: bool = False) -> Iterator[None]:
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


# ---- finding the code ----


def _read_file(text: str) -> _Code:
    path, wanted = text, None
    if not os.path.exists(path) and ":" in text:
        path, _, wanted = text.rpartition(":")
    path = os.path.abspath(path)
    data = _read(path)
    defined = find_defined(data, path, wanted)
    _refuse_neighbours(data, path)
    kept = f"{slug(Path(path).stem)}-{hashlib.sha256(data).hexdigest()[:12]}.py"
    return _Code(path, path, data, defined, kept)


def _read(path: str) -> bytes:
    try:
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{path}: {reason}. --file takes a Python file.") from error
    if len(data) > SIZE_MAX:
        raise UsageError(f"{path} is {len(data):,} bytes long; is it a Python file?")
    return data


def _read_function(text: str) -> _Code:
    module, _, name = text.partition(":")
    if not (name and all(part.isidentifier() for part in [*module.split("."), name])):
        raise UsageError(f"--function {text!r}: write MODULE:NAME, such as my_package.embed:run.")
    if not is_importable(module.partition(".")[0]):
        raise UsageError(
            f"workers cannot import the module {module!r}: it is not installed here. Install it, "
            f"or give its file: --file FILE.py:{name}"
        )
    try:
        return _importable(module, name)
    except NotSupportedError as error:
        raise UsageError(str(error)) from error


def _importable(module: str, name: str) -> _Code:
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
    data = _read(spec.origin)
    return _Code(module, spec.origin, data, find_defined(data, spec.origin, name), None)


def _kept(path: str, options: Mapping[str, Any]) -> _Code:
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
    defined = _Defined(options["name"], options["is_class"])
    return _Code(options["code"], path, data, defined, options["kept"])


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


@costs(1)
def _look_at(path: str) -> tuple[int, int] | None:
    try:
        facts = os.stat(path)
    except OSError:
        return None
    return facts.st_size, facts.st_mtime_ns


# ---- reading a file without running it ----


def find_defined(data: bytes, path: str, wanted: str | None) -> _Defined:
    """Return what of a Python file is to run: `wanted`, else its Handler class or its `run`.

    Raises UsageError if there is no such thing, or more than one.
    """
    tree = _parse(data, path)
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
        return _Defined(name, is_class=True)
    if name not in functions and name not in others:
        raise UsageError(
            f"{path} defines no {name!r} at its top level; it defines: "
            f"{', '.join([*(node.name for node in classes), *functions]) or 'nothing'}."
        )
    if name in functions:
        _refuse_arguments(functions[name], "setup" in functions or "setup" in others, path)
    return _Defined(name, is_class=False, suffix=_suffix_in(tree))


def _parse(data: bytes, path: str) -> ast.Module:
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


def _refuse_neighbours(data: bytes, path: str) -> None:
    """Raise UsageError if the file imports a module that lies beside it (R71)."""
    directory = os.path.dirname(path)
    for node in ast.walk(_parse(data, path)):
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


def _read_settings(words: Sequence[str]) -> dict[str, Any]:
    given = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not (equals and name.isidentifier()):
            raise UsageError(f"--set {word}: write NAME=VALUE.")
        try:
            given[name] = json.loads(text)
        except ValueError:
            given[name] = text
    return given


# ---- functions given from Python ----


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
    for node in _parse(_read(path), path).body:
        end = node.end_lineno or node.lineno
        if node.lineno <= frame.f_lineno <= end and not isinstance(node, ast.If):
            raise UsageError(
                f"{path}, line {frame.f_lineno}: workers import this file to run the function, and "
                f'would plan again. Put this under: if __name__ == "__main__":'
            )
