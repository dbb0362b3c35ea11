"""What the ending of a run means: the table of `verdicts`, row by row, and the causes of errors."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from pathlib import Path

import pytest

from fsqueue import errors
from fsqueue.worker.attempts import verdicts
from fsqueue.worker.attempts.verdicts import (
    Cause,
    Evidence,
    ForClaim,
    ForWorker,
    Verdict,
    cause_of,
    lacked_memory,
    verdict,
)

ROOT = Path(__file__).parents[4]


def rows(text: str) -> dict[str, tuple[str, ...]]:
    """Return the rows of the first table under the heading VERDICTS: claim, worker, evidence."""
    table = text.partition("evidence\n")[2].partition("\n\n")[0]
    cells = [re.split(r" {2,}|\s*\|\s*", line.strip().strip("|").strip()) for line in
             table.splitlines()[1:]]  # fmt: skip
    return {cause: tuple(rest) for cause, *rest in cells}


DOCUMENTED = rows(verdicts.__doc__ or "")


@pytest.mark.parametrize("cause", Cause)
def test_the_documented_row_of_each_cause_is_its_verdict(cause: Cause) -> None:
    claim, worker, evidence = DOCUMENTED[cause.value]
    documented = Verdict(ForClaim(claim), ForWorker(worker), Evidence(evidence))
    assert verdict(cause) == documented


def test_the_table_has_no_other_rows() -> None:
    assert set(DOCUMENTED) == {cause.value for cause in Cause}


def test_the_page_for_users_has_the_same_table() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    found = re.findall(r"^\| ([a-z ]+?) +\| ([a-z ]+?) +\| ([a-z ]+?) +\| ([a-z]+) +\|", page, re.M)
    assert {cause: tuple(rest) for cause, *rest in found if cause in DOCUMENTED} == DOCUMENTED


def chained(error: Exception, cause: Exception) -> Exception:
    """Return `error` as it is after `raise error from cause`."""
    error.__cause__ = cause
    return error


CAUSES = {
    "a handler's own error": (errors.ClaimFailed("x"), Cause.FAILED),
    "any exception": (KeyError("x"), Cause.FAILED),
    "a missing input": (FileNotFoundError(errno.ENOENT, "gone", "in.faa"), Cause.FAILED),
    "an input of another user": (PermissionError(errno.EACCES, "no", "in.faa"), Cause.FAILED),
    "impossible": (errors.ClaimImpossible("x"), Cause.IMPOSSIBLE),
    "a bad input": (errors.BadInput("x"), Cause.IMPOSSIBLE),
    "damage": (errors.ClaimDamaged("x"), Cause.IMPOSSIBLE),
    "too slow": (errors.TimedOut("x"), Cause.TIMED_OUT),
    "a missing model": (errors.NotSupportedError("x"), Cause.UNABLE),
    "another user's claim": (errors.UsageError("x"), Cause.UNABLE),
    "asked to stop": (errors.Interrupted("x"), Cause.LEAVING),
    "a broken context": (errors.WorkerBroken("x"), Cause.BROKEN),
    "a faulty card": (errors.NodeTrouble("x"), Cause.NODE_TROUBLE),
    "a lost claim": (errors.ClaimLost("x"), Cause.LOST),
    "an untrusted file": (errors.PoolError("x"), Cause.POOL_TROUBLE),
    "an error of the mount": (OSError(errno.EIO, "Input/output error"), Cause.POOL_TROUBLE),
    "a stale handle": (OSError(errno.ESTALE, "Stale file handle"), Cause.POOL_TROUBLE),
    "a mount that is gone": (OSError(errno.ENOTCONN, "not connected"), Cause.POOL_TROUBLE),
    "a full disk": (OSError(errno.ENOSPC, "No space left"), Cause.NO_SPACE),
    "a quota": (OSError(errno.EDQUOT, "Quota exceeded"), Cause.NO_SPACE),
    "too many files": (OSError(errno.ENFILE, "Too many open files"), Cause.NODE_TROUBLE),
    "a handler that leaks files": (OSError(errno.EMFILE, "Too many open files"), Cause.BROKEN),
    "an error of the mount behind a handler's": (
        chained(errors.ClaimFailed("cannot be read"), OSError(errno.EIO, "x")),
        Cause.POOL_TROUBLE,
    ),
    "an error of the mount behind an impossible claim": (
        chained(errors.ClaimImpossible("changed"), OSError(errno.ESTALE, "x")),
        Cause.POOL_TROUBLE,
    ),
}  # fmt: skip


@pytest.mark.parametrize("error, cause", CAUSES.values(), ids=CAUSES.keys())
def test_r1_what_the_claim_did_not_do_is_not_its_fault(error: Exception, cause: Cause) -> None:
    assert cause_of(error, running=True) is cause


def test_r1_no_usable_temporary_directory_is_the_nodes_trouble(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The real error of the standard library, whose number is that of a missing file."""
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "missing")])
    monkeypatch.setattr(tempfile, "tempdir", None)
    with pytest.raises(FileNotFoundError) as caught:
        tempfile.mkdtemp()
    assert cause_of(caught.value, running=True) is Cause.NODE_TROUBLE


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.ENOENT, errno.ELOOP])
def test_any_error_outside_the_handler_is_the_pools(number: int) -> None:
    error = OSError(number, os.strerror(number))
    assert cause_of(error, running=False) is Cause.POOL_TROUBLE


def test_only_what_the_claim_did_is_charged() -> None:
    charged = {cause for cause in Cause if verdict(cause).claim is ForClaim.CHARGED}
    assert charged == {Cause.FAILED, Cause.TIMED_OUT, Cause.BROKEN}


def test_r2_no_ending_of_a_claim_stops_its_worker_but_trouble_of_the_node() -> None:
    stopping = {cause for cause in Cause if verdict(cause).worker is ForWorker.STOP}
    assert stopping == {Cause.NO_SPACE, Cause.NODE_TROUBLE, Cause.BROKEN}


# ---- lack of memory (R77) ----


@pytest.mark.parametrize(
    "record",
    [
        {"error": "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.50 GiB"},
        {"error": "MemoryError"},
        {"error": "x exited with status 1", "detail": "terminate called ... 'std::bad_alloc'"},
        {"error": "OSError: [Errno 12] Cannot allocate memory"},
        {"error": "x was killed by SIGKILL", "returncode": -9},
        {"error": "x exited with status 137", "returncode": 137},
    ],
)
def test_r77_lack_of_memory_is_known_by_what_each_library_and_the_kernel_say(
    record: dict[str, object],
) -> None:
    assert lacked_memory(record)


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"error": "ValueError: bad"},
        {"error": "x was killed by SIGSEGV", "returncode": -11},
        {"error": "x exited with status 9", "returncode": 9},
        {"error": "it ran longer than --timeout 5 seconds and was killed"},
    ],
)
def test_r77_other_failures_are_not_taken_for_it(record: dict[str, object]) -> None:
    assert not lacked_memory(record)
