"""Run any program over files: one claim per input, one process per claim.

The program runs without a shell. Its output is published only if it exits 0: what it wrote to
`{output}`, or if its arguments do not contain that, its stdout. If it fails, its stderr is kept. It
runs in its own process group, which ends with the worker: a worker that is asked to stop sends the
group SIGTERM, then SIGKILL; on Linux, the program also dies with a worker that was killed.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import IO, Any, Final

from fsqueue.errors import (
    BadInput,
    ClaimFailed,
    ClaimImpossible,
    Interrupted,
    NotSupportedError,
    UsageError,
)
from fsqueue.handler import Handler, Option, Work

STDERR_KEPT: Final = 16 << 10
STOP_S: Final = 0.5
LIMITS: Final = {errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM}
TERMINATED: Final = (-signal.SIGTERM, 128 + signal.SIGTERM)
PLACES: Final = re.compile(r"\{(?:input|output|id|attempt)\}")
_PR_SET_PDEATHSIG: Final = 1


class Command(Handler):
    """Plan and run `PROGRAM ARG...` once per input."""

    suffix = ".out"
    personal = True
    unit = "seconds"
    trailing = "PROGRAM [ARG...]"
    options = (
        Option("grace", 10.0, "Seconds between SIGTERM and SIGKILL when the worker stops."),
        Option(
            "timeout", 0.0, "Fail an attempt that runs longer than this many seconds (0: never)."
        ),
    )

    def prepare(self, options: dict[str, Any]) -> dict[str, Any]:
        argv = options.get("argv") or []
        if not argv:
            raise UsageError(
                "no program was given. It comes after `--`: "
                "fsqueue plan command POOL INPUT... -- wc -l {input}"
            )
        if not any("{input}" in word for word in argv):
            raise UsageError(
                f"{' '.join(argv)!r} has no {{input}} among its arguments, so every claim would do "
                f"the same. Add it where the input's path belongs."
            )
        for option in ("grace", "timeout"):
            if not 0 <= options[option] < float("inf"):
                raise UsageError(
                    f"--{option} {options[option]} is not a number of seconds, 0 or more."
                )
        program = argv[0]
        if os.sep in program:
            argv = [os.path.abspath(program), *argv[1:]]
        elif shutil.which(program) is None:
            raise UsageError(
                f"{program!r} is not on PATH here. Check its name, or give its full path."
            )
        return options | {"argv": list(argv)}

    def result_options(self, options: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"argv": options["argv"]}

    def run(self, work: Work) -> None:
        _check_unchanged(work)
        argv = _substitute(work)
        with tempfile.TemporaryFile() as stderr, ExitStack() as opened:
            stdout: IO[bytes] = stderr
            if not any("{output}" in word for word in work.options["argv"]):
                stdout = opened.enter_context(open(work.output, "xb"))
            status = _run_program(work, argv, stdout, stderr)
            if status != 0 and _was_stopped_too(work, status):
                raise Interrupted("the program was stopped together with the worker")
            if status != 0:
                raise ClaimFailed(
                    f"{argv[0]} {_ending(status)}; its output is not published",
                    detail=_tail(stderr),
                    returncode=status,
                )
            if not work.output.exists():
                raise ClaimFailed(
                    f"{argv[0]} exited 0 but did not write {{output}}. Does it write elsewhere?",
                    detail=_tail(stderr),
                )


def _was_stopped_too(work: Work, status: int) -> bool:
    """Return whether a program failed because it was stopped together with its worker.

    SLURM sends SIGTERM to every process of a job, and may reach the program first.
    """
    deadline = time.monotonic() + (STOP_S if status in TERMINATED else 0.0)
    while not work.stopping and time.monotonic() < deadline:
        time.sleep(0.01)
    return work.stopping


def _check_unchanged(work: Work) -> None:
    """Raise an error if the input is not what was planned."""
    try:
        facts = Handler.identify(str(work.input))
    except BadInput as error:
        raise ClaimFailed(f"its input cannot be read: {error}") from error
    if not Handler.is_unchanged(work.payload["facts"], facts):
        raise ClaimImpossible(
            f"{work.input} changed since it was planned (its size or mtime differs); plan it "
            f"again to process the new content"
        )


def _substitute(work: Work) -> list[str]:
    values = {
        "{input}": str(work.input),
        "{output}": str(work.output),
        "{id}": work.id,
        "{attempt}": str(work.attempt),
    }
    return [PLACES.sub(lambda place: values[place[0]], word) for word in work.options["argv"]]


def _run_program(work: Work, argv: list[str], stdout: IO[bytes], stderr: IO[bytes]) -> int:
    environment = os.environ | {
        "FSQUEUE_ID": work.id,
        "FSQUEUE_ATTEMPT": str(work.attempt),
        "FSQUEUE_INPUT": str(work.input),
        "FSQUEUE_OUTPUT": str(work.output),
        "FSQUEUE_PARTIAL": work.partial,
    }
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env=environment,
            start_new_session=True,
            preexec_fn=_die_with_parent(),
        )
    except OSError as error:
        if error.errno in LIMITS:
            raise NotSupportedError(
                f"{argv[0]} cannot be started: {error.strerror}; this process has reached a limit. "
                f"Raise it (ulimit -n, -u, or the job's), then start this worker again."
            ) from error
        raise ClaimFailed(f"{argv[0]} cannot be started: {error.strerror}") from error
    try:
        return _wait(work, process)
    except BaseException:
        _kill_group(process, work.options["grace"])
        raise


def _wait(work: Work, process: subprocess.Popen[bytes]) -> int:
    started = time.monotonic()
    pause_s = 0.002
    while True:
        try:
            return process.wait(timeout=pause_s)
        except subprocess.TimeoutExpired:
            pause_s = min(pause_s * 2, 0.2)
        elapsed_s = time.monotonic() - started
        timeout_s = work.options["timeout"]
        if timeout_s and elapsed_s > timeout_s:
            raise ClaimFailed(f"it ran longer than --timeout {timeout_s:g} seconds and was killed")
        if work.stopping:
            raise Interrupted("the worker stops; the program was killed")
        work.progress(int(elapsed_s), 0)


def _kill_group(process: subprocess.Popen[bytes], grace_s: float) -> None:
    """Kill the program and everything it started; a second signal cuts the grace short."""
    try:
        _signal_group(process, signal.SIGTERM)
        process.wait(timeout=grace_s)
    except subprocess.TimeoutExpired:
        pass  # it ignores SIGTERM, or needs more time to clean up
    finally:
        _signal_group(process, signal.SIGKILL)  # including what the program left running
        process.wait()


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except (ProcessLookupError, PermissionError):
        pass  # RACE: they have all ended by themselves


def _die_with_parent() -> Callable[[], None] | None:
    """Return what the child calls before exec, so that it dies with its worker.

    A worker killed by SIGKILL cannot kill its program. Without this, programs of dead workers would
    run on beside their successors.
    """
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    worker = os.getpid()

    def ask_kernel() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != worker:
            os._exit(1)  # RACE: the worker was killed before prctl took effect

    return ask_kernel


def _tail(file: IO[bytes]) -> str:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - STDERR_KEPT))
    return file.read().decode("utf-8", "replace")


def _ending(status: int) -> str:
    if status >= 0:
        return f"exited with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"
