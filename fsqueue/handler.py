"""What a handler is: it plans inputs into items of work, and runs one claim.

A handler is a class, registered under the entry-point group `fsqueue.handlers`; the name of its
entry point is what follows `fsqueue plan`. The smallest one has only `run`:

    class Words(Handler):
        suffix = ".txt"

        def run(self, work):
            text = work.input.read_text()
            work.output.write_text(f"{len(text.split())}\\n")

Planning, in order: `prepare` checks the options once; `survey` reads each input once; `cut` divides
the surveyed sources into items that cost at most a given amount. All three run in the planner.
`run` runs in a worker, which keeps one instance of the class for its whole life, so that what is
expensive to load is loaded once.

What this module does not know: what the work means.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fsqueue.errors import (
    BadInput,
    ClaimFailed,
    ClaimImpossible,
    FsqueueError,
    NotSupportedError,
    PoolError,
    UsageError,
)
from fsqueue.pool.layout import CHECKPOINT
from fsqueue.pool.names import slug
from fsqueue.storage import atomic, directories

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

log = logging.getLogger(__name__)

GROUP: Final = "fsqueue.handlers"
CPU: Final = "cpu"
ELSEWHERE: Final = "If it is elsewhere on this host: fsqueue work --path-map OLD=NEW"


@dataclass(frozen=True, slots=True)
class PlannedGpu:
    """A GPU that claims are planned for, or `cpu`, as a handler that prepares a plan sees it."""

    model: str
    capability: tuple[int, int] | None
    """The CUDA compute capability; None for a CPU, and where it is not known."""
    memory_gib: float | None = None

    @property
    def is_cpu(self) -> bool:
        """Whether its workers compute on a CPU."""
        return self.model == CPU


@dataclass(frozen=True, slots=True)
class Option:
    """One option of `fsqueue plan HANDLER`; its type is that of `default` (None means text)."""

    name: str
    default: str | int | float | bool | tuple[str, ...] | None
    """() for texts, any number of them."""
    help: str
    choices: tuple[str, ...] = ()
    required: bool = False
    duration: bool = False
    """Seconds, which may be given with units: 90, 10m, 1h30m."""
    switch: bool = False
    """--NAME or --no-NAME, and undecided (None) if neither is given."""


@dataclass(frozen=True, slots=True)
class Source:
    """One surveyed input. `key` identifies its path and content; `cost` is all of its work.

    `measures` are counters to show (pages, say); `notes` are warnings to show; `detail` is for the
    handler's own `cut`.
    """

    path: str
    key: str
    cost: int
    measures: Mapping[str, int] = field(default_factory=dict)
    notes: Sequence[str] = ()
    detail: Any = None


@dataclass(frozen=True, slots=True)
class Item:
    """One claim to plan: its name, its cost, and all that `run` needs to know.

    `identity` holds what distinguishes this item from any other with the same options: paths,
    ranges, content hashes. `payload` must be JSON. `measures` are counters to show and add up.
    """

    stem: str
    kind: str
    cost: int
    identity: Mapping[str, Any]
    payload: Mapping[str, Any]
    measures: Mapping[str, int] = field(default_factory=dict)


class Handler:
    """Subclass this; override what does not fit."""

    name = ""
    """The entry point's name; set by `load_handler`."""
    suffix: str | None = ".out"
    """Outputs are outputs/ID + suffix. None: this handler has no output file."""
    options: Sequence[Option] = ()
    trailing: str | None = None
    """A metavar if the command line ends in `-- WORD...`; the words are options["argv"]."""
    unit = "items"
    """What `Work.progress` counts."""
    tier: int = 2
    """The lowest tier of worker that may run its claims: 1 GPU, 2 CPU, 3 storage."""
    personal = False
    """True if its claims say which program to run, or to read files that are not pinned: a worker
    runs only those that its own user planned, even if it trusts a group."""
    requires: Sequence[str] = ()
    """Capabilities that a worker must have for its claims (`work --capability`)."""
    cost_max: int | None = None
    """No claim should cost more than this, however large the input (see `cut`)."""
    cost_per_second: float | None = None
    """About how much cost a GPU of weight 1.0 (an RTX 3090) does in a second, if that is known.
    Then claims are cut to take `plan --claim-seconds` there. `prepare` may set it."""

    ends_in_time = False
    """True if `run` itself raises TimedOut after `Work.timeout_s`, and need not be interrupted."""

    is_set_up = False
    """Whether `setup` has been called."""
    models_max: int | None = None
    """How many models it may keep loaded (`work --max-models`); None: as many as fit."""
    _others: Callable[[str], Handler] | None = None

    def attach(self, others: Callable[[str], Handler], *, models_max: int | None) -> None:
        """Make this one of a worker's handlers; `others` returns the others by name."""
        self._others = others
        self.models_max = models_max

    def other_handler(self, name: str) -> Handler:
        """Return another handler; in a worker it is the worker's own, so that models load once."""
        return self._others(name) if self._others is not None else load_handler(name)

    def for_gpus(self, options: dict[str, Any], gpus: Sequence[PlannedGpu]) -> dict[str, Any]:
        """Decide what depends on the GPUs that are planned for, before `prepare`. UsageError."""
        return options

    def prepare(self, options: dict[str, Any]) -> dict[str, Any]:
        """Check and complete the options once per plan; they must be JSON. UsageError if wrong."""
        return options

    def kept_files(self, options: Mapping[str, Any]) -> Mapping[str, bytes]:
        """Return files that its claims need beside their inputs; the pool keeps them in code/.

        Names must say what is in them (by a hash, say): a file of that name is never replaced.
        """
        return {}

    def describe(self, options: Mapping[str, Any]) -> Sequence[str]:
        """Return what the planner should know about the prepared options, a line each."""
        return ()

    def result_options(self, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the options that affect the result, which become part of every claim's id."""
        return options

    def gpu_memory_gib(self, options: Mapping[str, Any]) -> float:
        """Return how much memory a GPU must have at least for claims of these options.

        Spools of GPUs that are known to have less get none of them. 0: any GPU will do.
        """
        return 0.0

    def survey(self, path: str, options: Mapping[str, Any]) -> Source:
        """Read one input, once, in bounded memory. Raises BadInput."""
        facts = self.identify(path)
        return Source(path, _hash([path, facts]), max(1, facts["bytes"]), {"inputs": 1})

    def cut(
        self, sources: Sequence[Source], options: Mapping[str, Any], cost_max: int
    ) -> Iterator[Item]:
        """Yield items that cost at most `cost_max`, as far as the inputs can be divided.

        Called three times with the same arguments; it must yield the same items each time.
        """
        for source in sources:
            facts = self.identify(source.path)
            payload = {"input": source.path, "facts": facts}
            identity = {"key": source.key}
            stem = Path(source.path).stem
            yield Item(stem, self.name, source.cost, identity, payload, source.measures)

    def setup(self) -> None:
        """Load what all claims need: called once per worker, before its first `run`.

        No claim is charged for an error here: the worker leaves such claims to others.
        """

    def set_up(self) -> None:
        """Call `setup`, once. Raises NotSupportedError if it fails."""
        if self.is_set_up:
            return
        try:
            self.setup()
        except FsqueueError:
            raise
        except Exception as error:
            log.info("setup() failed", exc_info=error)
            raise NotSupportedError(f"setup() failed: {where_raised(error)}") from error
        self.is_set_up = True

    def run(self, work: Work) -> None:
        """Do one claim: read `work.payload`, write `work.output`.

        Raises ClaimFailed, ClaimImpossible, Interrupted, NotSupportedError (leave such claims to
        other workers), NodeTrouble, WorkerBroken; any other exception counts as ClaimFailed.
        """
        raise NotImplementedError

    def inputs(self, payload: Mapping[str, Any]) -> list[str]:
        """Return the paths that a claim with this payload reads."""
        return [payload["input"]] if isinstance(payload.get("input"), str) else []

    def members(self, payload: Mapping[str, Any]) -> list[str]:
        """Return the names, in the archive that its output is, of what was made from each input.

        They are in the order of `inputs`; none if the output is one thing.
        """
        return []

    def warm(self, options: Mapping[str, Any]) -> None:
        """Load what claims of these options need, if that takes long (`broadcast` warmup)."""

    def prepare_payload(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Check and complete the data of a broadcast before it is sent. UsageError if wrong."""
        return dict(data)

    def selftest(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Run a known input and return what came out, as JSON; ClaimImpossible if it is wrong."""
        raise ClaimImpossible(f"the handler {self.name!r} has no self-test")

    def program(self, options: Mapping[str, Any], payload: Mapping[str, Any]) -> list[str]:
        """Return the program, with its arguments, that a claim runs; empty if it runs none."""
        return []

    def loaded(self) -> list[str]:
        """Return the kinds of claim for which everything is loaded now."""
        return []

    def close(self) -> None:
        """Release everything; the worker is leaving."""

    @staticmethod
    def identify(path: str) -> dict[str, int]:
        """Return the facts that show, when a claim runs, whether its input has changed."""
        try:
            facts = os.stat(path)
        except OSError as error:
            raise BadInput(f"{path}: {error.strerror}. Check the path.") from error
        return {"bytes": facts.st_size, "mtime_ns": facts.st_mtime_ns}

    @staticmethod
    def is_unchanged(planned: Mapping[str, Any], now: Mapping[str, int]) -> bool:
        """Return whether two results of `identify` are of the same content.

        Times are compared at the coarser resolution of the two: some mounts cut them to seconds,
        microseconds or 100 ns.
        """
        then_ns, now_ns = planned.get("mtime_ns"), now["mtime_ns"]
        if planned.get("bytes") != now["bytes"] or not isinstance(then_ns, int):
            return False
        coarsest = max(_resolution_ns(then_ns), _resolution_ns(now_ns))
        return then_ns // coarsest == now_ns // coarsest


def _resolution_ns(time_ns: int) -> int:
    """Return the coarsest resolution to which a time may have been cut."""
    return next(unit for unit in (10**9, 10**6, 10**3, 10**2, 1) if time_ns % unit == 0)


@dataclass(frozen=True, slots=True)
class Computing:
    """What became of some time in which a handler computed, for those who watch the worker."""

    seconds: float
    computing_s: float
    """In which the device computed."""
    feeding_s: float
    """In which the handler waited for input, or prepared it."""
    teraflop: float = 0.0
    """The operations that the model's products needed, in 10^12."""
    reach_teraflop: float = 0.0
    """Those that the device would have reached in that time, in large products; 0 if unknown."""
    peak_gib: float = 0.0
    """The most memory that was held; 0 if unknown."""


def _unwatched(_: Computing) -> None:
    return None


@dataclass(slots=True)
class Work:
    """One claim as its handler sees it, and what the handler may ask of the worker."""

    id: str
    kind: str
    cost: int
    attempt: int
    payload: Mapping[str, Any]
    options: Mapping[str, Any]
    output: Path
    """A private path on the pool's file system; the file there is published when `run` returns."""
    partial: str
    is_stopping: Callable[[], bool]
    report: Callable[[int, int, Mapping[str, int]], None]
    warn: Callable[[str], None]
    """Writes one line to the worker's journal and log."""
    timeout_s: float = 0.0
    """How long the run may take, by `plan --timeout`; 0: any time. It is interrupted then."""
    saved: bool = False
    """Whether this run saved a checkpoint."""
    counted: dict[str, int] = field(default_factory=dict)
    """The counters given to `count`."""
    worker: str = ""
    """The id of the worker that runs it."""
    code: str = ""
    """The directory in which the pool keeps what `Handler.kept_files` returned."""
    note_computing: Callable[[Computing], None] = _unwatched
    """Reports what became of the time since the last report."""

    @property
    def input(self) -> Path:
        """The input's path, for handlers that use the default `cut`."""
        return Path(self.payload["input"])

    @property
    def stopping(self) -> bool:
        """True once the worker is asked to stop: save a checkpoint and raise Interrupted."""
        return self.is_stopping()

    def progress(self, done: int, total: int, **measures: int) -> None:
        """Report progress inside the claim, in the handler's unit. It is cheap: call it often.

        `measures` are counters of what was done since the last report; they are added up.
        """
        self.report(done, total, measures)

    def count(self, **measures: int) -> None:
        """Report counters known only after the run, for the journal and the status."""
        self.counted.update(measures)

    def checkpoint(self, name: str, data: bytes) -> None:
        """Save a partial result for the next run of this claim; published whole, never replaced.

        A zombie may save the same name first, so its bytes must be as good as ours: name a
        checkpoint after the part of the work that it holds.
        """
        assert CHECKPOINT.fullmatch(name), name
        directories.make(self.partial)
        try:
            atomic.publish(f"{self.partial}/{name}", data)
        except FileNotFoundError:
            # RACE: a zombie published the output of this claim, and removed its checkpoints.
            directories.make(self.partial)
            atomic.publish(f"{self.partial}/{name}", data)
        self.saved = True

    def checkpoints(self) -> dict[str, bytes]:
        """Return every checkpoint of this claim by name, whichever worker saved it."""
        try:
            found = atomic.names(self.partial)
        except PoolError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            return {}  # RACE: none was saved, or a zombie is removing them
        saved = {}
        for name in sorted(filter(CHECKPOINT.fullmatch, found)):
            try:
                saved[name] = atomic.read(f"{self.partial}/{name}", limit=1 << 34)
            except FileNotFoundError:
                continue  # RACE: as above; losing a checkpoint costs time, not correctness
        return saved


def where_raised(error: BaseException) -> str:
    """Return an error of a user's code in one line, with the file and line it came from."""
    text = f"{type(error).__name__}: {error}".removesuffix(": ")
    ours = os.path.dirname(__file__)
    for frame in traceback.extract_tb(error.__traceback__):
        if not frame.filename.startswith((f"{ours}/", "<frozen")):
            return f"{text} ({frame.filename}, line {frame.lineno})"
    return text


def check_unchanged(work: Work) -> None:
    """Raise an error if the input of the default `cut` is not what was planned."""
    try:
        facts = Handler.identify(str(work.input))
    except BadInput as error:
        gone = isinstance(error.__cause__, FileNotFoundError)
        hint = f" {ELSEWHERE}" if gone and not work.input.parent.exists() else ""
        raise ClaimFailed(f"its input cannot be read: {error}{hint}") from error
    if not Handler.is_unchanged(work.payload["facts"], facts):
        raise ClaimImpossible(
            f"{work.input} changed since it was planned (its size or mtime differs); plan it "
            f"again to process the new content"
        )


def complete_options(handler: Handler, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the handler's options, the missing ones from their defaults; refuse unknown ones."""
    known = {option.name: option for option in handler.options}
    extra = {"argv"} if handler.trailing else set()
    for name in given:
        if name not in known and name not in extra:
            raise UsageError(
                f"the handler {handler.name!r} has no option {name!r}; it has: "
                f"{', '.join([*known, *extra]) or 'none'}."
            )
    options = {name: given.get(name, option.default) for name, option in known.items()}
    for name, option in known.items():
        if option.required and options[name] is None:
            raise UsageError(
                f"the handler {handler.name!r} needs the option {name!r}: {option.help}"
            )
        if option.switch and options[name] not in (None, True, False):
            raise UsageError(f"{name} is True, False or None, not {options[name]!r}.")
        if option.choices and options[name] not in (option.default, *option.choices):
            raise UsageError(
                f"{name} is one of {', '.join(option.choices)}, not {options[name]!r}."
            )
    return options | {name: given[name] for name in extra & set(given)}


def claim_id(handler: Handler, options: Mapping[str, Any], item: Item) -> str:
    """Return the id of an item: the same work always has the same id."""
    identity = [handler.name, handler.result_options(options), item.identity]
    return f"{slug(item.stem)}-{_hash(identity)[:12]}"


def source_key(handler: Handler, options: Mapping[str, Any], source: Source) -> str:
    """Return what identifies a whole input under these options; it is planned only once."""
    return _hash([handler.name, handler.result_options(options), source.key])


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=dict)
    digest = hashlib.sha256(text.encode()).digest()[:20]
    return base64.b32encode(digest).decode().lower()


# ---- the registry ----


def registered() -> dict[str, EntryPoint]:
    """Return the entry point of every installed handler by name, without importing any."""
    from importlib.metadata import entry_points  # late: importing it takes as long as all the rest

    return {entry.name: entry for entry in entry_points(group=GROUP)}


def load_handler(name: str) -> Handler:
    """Import the handler called `name` and create an instance of it."""
    handler = load_class(name)()
    handler.name = name
    return handler


def load_class(name: str) -> type[Handler]:
    """Import the handler called `name`, creating nothing."""
    entry = registered().get(name)
    if entry is None:
        known = ", ".join(sorted(registered())) or "none"
        raise UsageError(
            f"no handler is called {name!r}; installed: {known}. Install the package that "
            f"provides it into this environment ({sys.prefix})."
        )
    try:
        found: type[Handler] = entry.load()
    except (ImportError, AttributeError) as error:
        raise NotSupportedError(
            f"the handler {name!r} cannot be imported ({error}); something it needs is not "
            f"installed. pip install it, then start again."
        ) from error
    return found
