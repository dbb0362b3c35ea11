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

import hashlib
import inspect
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from fsqueue.errors import ClaimFailed, ClaimImpossible, NotSupportedError, UsageError
from fsqueue.handler import (
    Handler,
    Item,
    Option,
    PlannedGpu,
    Source,
    Work,
    check_unchanged,
    complete_options,
)
from fsqueue.pool.layout import SUFFIX
from fsqueue.pool.names import slug
from fsqueue.python_file.code import Code, explained, importable, kept, read_file, read_function
from fsqueue.storage.operation_count import costs

DEFAULT_SUFFIX: Final = ".out"
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
        self._code: Code | None = None
        """What `prepare` read."""
        self._gpus: Sequence[PlannedGpu] = ()
        self._running: dict[tuple[str, str], Handler] = {}
        """In a worker: the instance of each code, by its hash and name."""
        self._seen: dict[str, tuple[int, int, str]] = {}
        """Size, mtime and hash of the files that were looked at."""

    # ---- planning ----

    def for_gpus(self, options: dict[str, Any], gpus: Sequence[PlannedGpu]) -> dict[str, Any]:
        self._gpus = gpus  # for the Handler class that `prepare` loads
        return options

    def prepare(self, options: dict[str, Any]) -> dict[str, Any]:
        file, function = options.get("file"), options.get("function")
        if (file is None) == (function is None):
            raise UsageError(f"say which code is to run, by either --file or --function: {EXAMPLE}")
        code = read_function(str(function)) if file is None else read_file(file)
        defined = code.defined
        given = _read_settings(options.get("set") or ())
        suffix, decisive = options.get("suffix") or defined.suffix, given
        if defined.is_class:
            handler = _instance(code.load(planning=True), code)
            self._adopt(handler)
            given = handler.for_gpus(complete_options(handler, given), self._gpus)
            given = handler.prepare(given)
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
            code = (read_file if is_file else read_function)(f"{place}:{name}")
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
            code = importable(options["code"], name)
            if code.sha256 != sha256:
                raise NotSupportedError(
                    f"the module {options['code']} is not here what it was where it was planned "
                    f"({code.path} differs). Install the same version here, or plan again"
                )
        else:
            code = kept(f"{directory}/{options['kept']}", options)
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

    def __init__(self, module: ModuleType, name: str, code: Code) -> None:
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


def _instance(module: ModuleType, code: Code) -> Handler:
    made = getattr(module, code.defined.name, None)
    if not (isinstance(made, type) and issubclass(made, Handler)):
        raise UsageError(f"{code.shown} is not a subclass of fsqueue.Handler")
    with explained(code, f"{code.defined.name}()"):
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


@costs(1)
def _look_at(path: str) -> tuple[int, int] | None:
    try:
        facts = os.stat(path)
    except OSError:
        return None
    return facts.st_size, facts.st_mtime_ns


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
