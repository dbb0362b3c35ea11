"""Every change must go through one module, or crashes could not be tested at each."""

from __future__ import annotations

import builtins
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fsqueue
from fsqueue.pool import claims
from fsqueue.pool.layout import State
from fsqueue.worker.attempts.verdicts import Cause
from tests.support.crash import CHANGES
from tests.support.pools import ManualWorker, make_pool, only_claim, work_until_done
from tests.support.processes import wait_for

PACKAGE = str(Path(fsqueue.__file__).parent)
DOOR = f"{PACKAGE}/storage/atomic.py", f"{PACKAGE}/storage/directories.py"


def test_every_change_on_the_shared_file_system_goes_through_one_door(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Record which modules of fsqueue call functions that change files."""
    callers: dict[str, set[str]] = {}

    def note(verb: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            caller = sys._getframe(1).f_code.co_filename
            changes = verb not in ("open", "builtin open") or _writes(*args, **options)
            if caller.startswith(PACKAGE) and changes:
                callers.setdefault(caller, set()).add(verb)
            return real(*args, **options)

        return call

    for verb in (*CHANGES, "open", "write", "remove", "renames", "makedirs", "truncate"):
        monkeypatch.setattr(os, verb, note(verb, getattr(os, verb)))
    monkeypatch.setattr(builtins, "open", note("builtin open", builtins.open))

    pool = make_pool(tmp_path / "pool", "a.3", "b.2", lease_s=0.1)
    hand = ManualWorker(pool)
    hand.beat.start()
    wait_for(lambda: hand.lease.name.beat, "a beat of the thread")
    hand.journal.write("joined")
    hand.beat.flush()
    assert hand.run(hand.take()) is Cause.DONE
    claims.charge(pool, hand.take(), "gpu0", {"error": "x"}, final=True)
    claims.retry(pool, only_claim(pool, State.FAILED), "gpu0")
    hand.beat.stop()
    hand.leave()
    work_until_done(pool)
    expected = {*CHANGES, "open", "write"}
    assert set().union(*map(callers.pop, DOOR)) == expected
    root = callers.pop(f"{PACKAGE}/pool/settings.py")
    assert root == {"makedirs"}, "the directory that becomes the pool"
    assert callers == {}


def _writes(path: Any, mode: Any = "r", *args: Any, **options: Any) -> bool:
    if isinstance(mode, int):
        return bool(mode & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    return bool(set(mode) & set("wax+"))
