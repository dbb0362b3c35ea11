"""Run any program over files: one process per input, or one for several (`{inputs}`).

The program runs without a shell, in the directory where it was planned. Its output is published
only if it exits 0: what it wrote to `{output}`, or if its arguments do not contain that, its
stdout. The end of its stderr is kept if it fails. Everything that it started ends with it, and
before its output is published; how is in `processes.program`.

Rules:

R27 A program's directory, arguments and the name of its output are those that were planned. A
    worker on whose host that directory is not there puts the claim back, uncharged, for others.
    The directory is part of a claim's identity if an argument names something in it.
R28 No process can write into an output that is published: everything that had it open has ended
    before, or what is published is a copy.
R74 With --per-claim N, N inputs are one claim. It is done when every input is: then its output is a
    tar of what each made, named as the inputs are, with the same bytes on every worker. The first
    input that fails fails the claim, by name.
R29 A program is active while it uses CPU time, or its output or stderr grows; that it exists is no
    activity. One that hangs is therefore reported as stalled.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from fsqueue.errors import (
    ClaimFailed,
    Interrupted,
    NotSupportedError,
    TimedOut,
    UsageError,
)
from fsqueue.handler import Handler, Item, Option, Source, Work, check_unchanged
from fsqueue.pool.layout import SUFFIX
from fsqueue.processes.leftovers import WORKER_VARIABLE, end_everything_of
from fsqueue.processes.program import LINGER_S, Program, is_limit
from fsqueue.processes.temporary import TemporaryDirectory, remove
from fsqueue.storage import atomic
from fsqueue.storage.operation_count import costs

DEFAULT_SUFFIX: Final = ".out"
ARCHIVE_SUFFIX: Final = ".tar"
ALL_INPUTS: Final = "{inputs}"
STOP_S: Final = 0.5
POLL_S: Final = 0.2
AWAY_S: Final = 5.0
"""A look that comes this late: this process was stopped, most likely together with its program."""
ACTIVITY_S: Final = 5.0
"""How often to look whether a program does anything."""
ACTIVE_SHARE: Final = 0.01
"""Of one CPU. A program that waits in a loop uses less."""
CLOSE_S: Final = 1.0
NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
TERMINATED: Final = (-signal.SIGTERM, 128 + signal.SIGTERM)
PLACES: Final = re.compile(r"\{(?:input|output|id|attempt)\}")
OUTPUT_AND_ENDING: Final = re.compile(r"\{output\}(\.[A-Za-z0-9_.-]*[A-Za-z0-9_-])?", re.ASCII)
BETWEEN_WORDS: Final = re.compile(r"[\s'\"`;|&<>()=,]+")


class Command(Handler):
    """Plan and run `PROGRAM ARG...` once per input, or once for several.

    {input} {output} {id} {attempt} are substituted in the arguments; {inputs}, an argument of its
    own, stands for all inputs of a claim (--per-claim).
    """

    suffix = DEFAULT_SUFFIX
    personal = True
    ends_in_time = True
    unit = "seconds"
    trailing = "PROGRAM [ARG...]"
    options = (
        Option(
            "grace",
            10.0,
            "Time between SIGTERM and SIGKILL when a program, or what it left running, is ended.",
            duration=True,
        ),
        Option(
            "suffix",
            None,
            "How the names of {output} and of the published output end, such as .fastq.gz. "
            "Default: what follows {output} in an argument, else .out.",
        ),
        Option(
            "per_claim",
            1,
            "How many inputs are one claim, for inputs that take a moment each. With {inputs} "
            "their program runs once; with {input} once for each, and the output is a .tar.",
        ),
    )

    def prepare(self, options: dict[str, Any]) -> dict[str, Any]:
        argv = options.get("argv") or []
        if not argv:
            raise UsageError(
                "no program was given. It comes after `--`: "
                "fsqueue plan command POOL INPUT... -- wc -l {input}"
            )
        per_claim = _checked_per_claim(options.get("per_claim", 1), argv)
        if not any("{input}" in word or word == ALL_INPUTS for word in argv):
            raise UsageError(
                f"{' '.join(argv)!r} has no {{input}} among its arguments, so every claim would do "
                f"the same. Add it where the input's path belongs."
            )
        if not 0 <= options["grace"] < float("inf"):
            raise UsageError(f"--grace {options['grace']} is not a number of seconds, 0 or more.")
        program = argv[0]
        if os.sep in program:
            argv = [os.path.abspath(program), *argv[1:]]
        elif shutil.which(program) is None:
            raise UsageError(
                f"{program!r} is not on PATH here. Check its name, or give its full path."
            )
        suffix, argv = _choose_suffix(options.get("suffix"), argv)
        self.suffix = suffix if per_claim == 1 or ALL_INPUTS in argv else ARCHIVE_SUFFIX
        directory = os.getcwd()
        return options | {
            "argv": list(argv),
            "suffix": suffix,
            "directory": directory,
            "relative": sorted(set(_paths_in(argv[1:], directory))),
        }

    def result_options(self, options: Mapping[str, Any]) -> Mapping[str, Any]:
        decisive = {"argv": options["argv"]}
        # Only where they matter, so that what earlier versions planned keeps its identity.
        if options.get("relative"):
            decisive["directory"] = options["directory"]
        if options.get("suffix", DEFAULT_SUFFIX) != DEFAULT_SUFFIX:
            decisive["suffix"] = options["suffix"]
        if options.get("per_claim", 1) != 1:
            decisive["per_claim"] = options["per_claim"]
        return decisive

    def cut(
        self, sources: Sequence[Source], options: Mapping[str, Any], cost_max: int
    ) -> Iterator[Item]:
        count = options.get("per_claim", 1)
        if count == 1:
            yield from super().cut(sources, options, cost_max)
            return
        for first in range(0, len(sources), count):
            yield self._together(sources[first : first + count], options)

    def _together(self, sources: Sequence[Source], options: Mapping[str, Any]) -> Item:
        paths = [source.path for source in sources]
        payload = {"inputs": paths, "facts": [self.identify(path) for path in paths]}
        if ALL_INPUTS not in options["argv"]:
            payload["members"] = _member_names(paths, options["suffix"])
        stem = Path(paths[0]).stem + (f"_and_{len(paths) - 1}" if len(paths) > 1 else "")
        cost = sum(source.cost for source in sources)
        identity = {"keys": [source.key for source in sources]}
        return Item(stem, self.name, cost, identity, payload, {"inputs": len(paths)})

    def inputs(self, payload: Mapping[str, Any]) -> list[str]:
        several = payload.get("inputs")
        return list(several) if isinstance(several, list) else super().inputs(payload)

    def members(self, payload: Mapping[str, Any]) -> list[str]:
        return list(payload.get("members", ()))

    def program(self, options: Mapping[str, Any], payload: Mapping[str, Any]) -> list[str]:
        inputs = self.inputs(payload)
        words: list[str] = []
        for word in options.get("argv", ()):
            one = word.replace("{input}", inputs[0]) if len(inputs) == 1 else word
            words += inputs if word == ALL_INPUTS else [one]
        return words

    def __init__(self) -> None:
        self._temporary = TemporaryDirectory()
        self._worker = ""

    def run(self, work: Work) -> None:
        for each in _each_input(work):
            check_unchanged(each)
        self._worker = work.worker
        try:
            if self.members(work.payload):
                self._run_one_by_one(work)
            else:
                _run_program(work, _substitute(work), self._temporary)
        except BaseException:
            remove(str(work.output))  # at once: on a full disk it leaves no room for its own record
            _clear_beside(work)
            raise
        _clear_beside(work)

    def _run_one_by_one(self, work: Work) -> None:
        """Run the program for each input, and put what it made into one archive. R74."""
        directory = Path(f"{work.output}.d")
        started = time.monotonic()
        members = self.members(work.payload)
        with tarfile.open(work.output, "x:", format=tarfile.GNU_FORMAT) as archive:
            for index, each in enumerate(_each_input(work)):
                passed_s = time.monotonic() - started
                if work.timeout_s and passed_s >= work.timeout_s:
                    raise TimedOut(f"it ran longer than --timeout {work.timeout_s:g} seconds")
                each.timeout_s = work.timeout_s and work.timeout_s - passed_s
                directory.mkdir()
                each.output = directory / f"{index}{work.options['suffix']}"
                try:
                    _run_program(each, _substitute(each), self._temporary)
                except ClaimFailed as error:
                    where = f"input {index + 1} of {len(members)}, {each.input}: "
                    error.args = (f"{where}{error}",)
                    raise
                _add_member(archive, each.output, members[index])
                remove(str(directory))
                work.progress(int(time.monotonic() - started), 0)
                if work.stopping:
                    raise Interrupted("the worker stops")

    def close(self) -> None:
        self._temporary.remove()
        if self._worker:
            # A signal may have come between the start of a program and its first look.
            end_everything_of(self._worker, patience_s=CLOSE_S)


# ---- several inputs in one claim ----


def _each_input(work: Work) -> Iterator[Work]:
    """Yield the work for each input alone, which is not published by itself."""
    if "inputs" not in work.payload:
        yield work
        return
    for path, facts in zip(work.payload["inputs"], work.payload["facts"], strict=True):
        yield replace(work, payload={"input": path, "facts": facts})


def _member_names(paths: Sequence[str], suffix: str) -> list[str]:
    """Return a name for what is made from each input: the input's, and a number if it repeats."""
    names: list[str] = []
    taken: set[str] = set()
    for path in paths:
        name = base = f"{os.path.basename(path)}{suffix}"
        number = 1
        while name in taken:
            number += 1
            name = f"{number}-{base}"
        taken.add(name)
        names.append(name)
    return names


def _add_member(archive: tarfile.TarFile, path: Path, name: str) -> None:
    """Add a file without what differs from host to host: times, owners, modes."""
    with open(path, "rb") as file:
        member = tarfile.TarInfo(name)
        member.size = os.fstat(file.fileno()).st_size
        archive.addfile(member, file)


def _checked_per_claim(count: int, argv: Sequence[str]) -> int:
    if count < 1:
        raise UsageError(f"--per-claim {count}: must be 1 or more.")
    inside = [word for word in argv if ALL_INPUTS in word and word != ALL_INPUTS]
    if inside:
        raise UsageError(
            f"{inside[0]!r} has {{inputs}} inside an argument; it stands for several arguments, so "
            f"it has to be one of its own."
        )
    if ALL_INPUTS in argv and any("{input}" in word for word in argv):
        raise UsageError("the arguments have {input} and {inputs}; use one of them.")
    return count


# ---- planning ----


def _choose_suffix(given: str | None, argv: Sequence[str]) -> tuple[str, list[str]]:
    """Return how the output's name ends, and the arguments with `{output}` for the whole of it.

    `{output}.gz`, where no argument has `{output}` alone, is the output; beside `{output}` alone it
    is another file, which is not published. R27.
    """
    if given is not None and not SUFFIX.fullmatch(given):
        raise UsageError(
            f"--suffix {given!r} is not how a file's name can end here: up to three times a dot "
            f"and up to 16 letters, digits, _ or -. For example: --suffix .fastq.gz"
        )
    endings = {match[1] or "" for word in argv for match in OUTPUT_AND_ENDING.finditer(word)}
    if not endings or "" in endings or any("FSQUEUE_OUTPUT" in word for word in argv):
        return given or DEFAULT_SUFFIX, list(argv)
    if len(endings) > 1 or not SUFFIX.fullmatch(min(endings)):
        shown = " and ".join(f"{{output}}{ending}" for ending in sorted(endings))
        raise UsageError(
            f"the arguments name {shown}, but one file is published, and it has to be named as "
            f"{{output}}. Write {{output}} for that one and say how its name ends, for example: "
            f"--suffix .fastq.gz"
        )
    ending = endings.pop()
    if given is not None and given != ending:
        raise UsageError(
            f"--suffix {given} and {{output}}{ending} contradict each other: {{output}} stands for "
            f"the whole name, with its suffix. Write {{output}} alone, or leave out --suffix."
        )
    return ending, [word.replace("{output}" + ending, "{output}") for word in argv]


def _paths_in(words: Sequence[str], directory: str) -> Iterator[str]:
    """Yield what looks like a relative path in arguments or in scripts, and is there."""
    for word in words:
        for part in BETWEEN_WORDS.split(word):
            is_path = ("/" in part or "." in part) and "{" not in part and "\0" not in part
            if is_path and not os.path.isabs(part) and os.path.lexists(f"{directory}/{part}"):
                yield part


# ---- running ----


def _substitute(work: Work) -> list[str]:
    values = {
        "{output}": str(work.output),
        "{id}": work.id,
        "{attempt}": str(work.attempt),
    }
    argv: list[str] = []
    for word in work.options["argv"]:
        if word == ALL_INPUTS:
            argv += work.payload.get("inputs") or [str(work.input)]
        else:
            argv.append(PLACES.sub(lambda place: values.get(place[0]) or str(work.input), word))
    return argv


def _run_program(work: Work, argv: list[str], temporary: TemporaryDirectory) -> None:
    """Run the program to its end, and end what it left; raise if there is no good output."""
    with ExitStack() as stack:
        stdout = None
        if not any("{output}" in word for word in work.options["argv"]):
            stdout = stack.enter_context(open(work.output, "xb")).fileno()
        program = _start(work, argv, stdout, _temporary_path(work, temporary))
        stack.callback(program.close)
        try:
            status = _wait(work, program)
        finally:
            temporary.give_back(reusable=program.all_ended and bool(work.worker))
        _report_left(work, program, argv[0])
        if status != 0 and _was_stopped_too(work, status):
            raise Interrupted("the program was stopped together with the worker")
        if status != 0:
            raise ClaimFailed(
                f"{argv[0]} {_ending(status)}; its output is not published",
                detail=program.tail,
                returncode=status,
            )
        if not work.output.exists():
            raise ClaimFailed(
                f"{argv[0]} exited 0 but did not write {{output}}. Does it write elsewhere?",
                detail=program.tail,
            )
        if not program.all_ended:
            _replace_by_copy(work)


def _temporary_path(work: Work, temporary: TemporaryDirectory) -> str:
    try:
        return temporary.take(work.worker or f"process-{os.getpid()}")
    except OSError as error:
        if error.errno in NO_ROOM:
            raise
        raise NotSupportedError(
            f"no temporary directory can be made for the program ({error.strerror}). Set TMPDIR to "
            f"a directory that can be written, then start this worker again."
        ) from error


def _start(work: Work, argv: list[str], stdout: int | None, temporary_directory: str) -> Program:
    given = {
        "FSQUEUE_ID": work.id,
        "FSQUEUE_ATTEMPT": str(work.attempt),
        **({} if "inputs" in work.payload else {"FSQUEUE_INPUT": str(work.input)}),
        "FSQUEUE_OUTPUT": str(work.output),
        "FSQUEUE_PARTIAL": work.partial,
        **({WORKER_VARIABLE: work.worker} if work.worker else {}),
        **dict.fromkeys(("TMPDIR", "TMP", "TEMP"), temporary_directory),
    }
    encoded = {os.fsencode(name): os.fsencode(value) for name, value in given.items()}
    directory = work.options.get("directory")
    try:
        return Program(
            argv,
            environment={**os.environb, **encoded},
            directory=directory,
            stdout=stdout,
            mark=b"FSQUEUE_OUTPUT=" + encoded[b"FSQUEUE_OUTPUT"],
        )
    except OSError as error:
        if is_limit(error):
            raise NotSupportedError(
                f"{argv[0]} cannot be started: {error.strerror}; this process has reached a limit. "
                f"Raise it (ulimit -n, -u, or the job's), then start this worker again."
            ) from error
        if directory is not None and error.filename == directory:
            # Not the claim's fault, and another host may have it.
            raise NotSupportedError(
                f"{directory}, where {argv[0]} was planned and has to run, cannot be entered here "
                f"({error.strerror}). Mount it on this host, or plan again from a directory that "
                f"every worker sees."
            ) from error
        raise ClaimFailed(f"{argv[0]} cannot be started: {error.strerror}") from error


def _wait(work: Work, program: Program) -> int:
    """Wait for the program and end what it left; return its exit status. R22."""
    grace_s = work.options["grace"]
    # In claims of earlier versions it is one of the options.
    timeout_s = work.timeout_s or work.options.get("timeout", 0.0)
    looked_at = time.monotonic()
    elapsed_s = 0.0
    activity = _Activity(work, program)
    try:
        while not program.wait(POLL_S):
            passed_s = time.monotonic() - looked_at
            looked_at += passed_s
            if passed_s < AWAY_S:
                elapsed_s += passed_s
            if timeout_s and elapsed_s > timeout_s:
                raise TimedOut(f"it ran longer than --timeout {timeout_s:g} seconds and was killed")
            if work.stopping:
                raise Interrupted("the worker stops; the program was killed")
            activity.report(elapsed_s)
        linger_s = 0.0 if work.stopping else min(LINGER_S, grace_s)
        return program.finish(linger_s=linger_s, grace_s=grace_s)
    except ClaimFailed as error:
        program.end(grace_s)
        error.detail = program.tail
        raise
    except BaseException:
        program.end(grace_s)
        raise


class _Activity:
    """Whether a program does anything, looked at every few seconds. R29."""

    def __init__(self, work: Work, program: Program) -> None:
        self._work = work
        self._program = program
        self._looked_s = 0.0
        self._before = 0.0, 0, 0

    def report(self, elapsed_s: float) -> None:
        """Report progress if the program was active since the last look."""
        passed_s = elapsed_s - self._looked_s
        if passed_s < ACTIVITY_S:
            return
        cpu_s = self._program.cpu_s()
        now = cpu_s or 0.0, self._program.bytes_written, self._output_size()
        used_s = now[0] - self._before[0]
        if cpu_s is None or used_s >= ACTIVE_SHARE * passed_s or now[1:] != self._before[1:]:
            self._work.progress(int(elapsed_s), 0)
        self._looked_s, self._before = elapsed_s, now

    def _output_size(self) -> int:
        try:
            return os.stat(self._work.output).st_size
        except OSError:
            return 0


def _was_stopped_too(work: Work, status: int) -> bool:
    """Return whether a program failed because it was stopped together with its worker.

    SLURM sends SIGTERM to every process of a job, and may reach the program first.
    """
    deadline = time.monotonic() + (STOP_S if status in TERMINATED else 0.0)
    while not work.stopping and time.monotonic() < deadline:
        time.sleep(0.01)
    return work.stopping


# ---- what it left ----


def _report_left(work: Work, program: Program, name: str) -> None:
    """Report what the program left running, and that it was ended."""
    if program.ended:
        count = len(program.ended)
        ended = "1 process" if count == 1 else f"{count:,} processes"
        was = "was" if count == 1 else "were"
        work.warn(f"{ended} that {name} left running {was} ended")
    if program.unended:
        left = ", ".join(f"{process.pid} (state {process.state})" for process in program.unended)
        work.warn(
            f"what {name} left running cannot be ended: {left}. It hangs in the kernel, or runs as "
            f"another user; if the output is published, it is a copy"
        )


def _replace_by_copy(work: Work) -> None:
    """Replace the output by a copy, into which no process that is left can write. R28."""
    if work.output.is_file():
        copy = work.output.with_name(f"{work.output.name}~")
        shutil.copyfile(work.output, copy)
        os.replace(copy, work.output)


def _clear_beside(work: Work) -> None:
    """Remove what the program wrote beside its output, in the worker's private directory.

    What cannot be removed is logged, and decides nothing.
    """
    directory, name = os.path.split(work.output)
    if not work.worker or os.path.basename(directory) != f".{work.worker}":
        return  # not a worker's private directory
    try:
        beside = _list(directory)
    except OSError:
        return  # RACE: a worker that declared this one dead has removed it
    for other in beside:
        if other != name:
            remove(f"{directory}/{other}")


@costs(3)
def _list(directory: str) -> list[str]:
    return atomic.os.listdir(directory)


def _ending(status: int) -> str:
    if status >= 0:
        return f"exited with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"
