"""R11: a process is called gone only where that is proved: real namespaces, a real /proc.

Each test asks in another process, which sees the processes of this host differently.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from fsqueue.pool import proof_of_life as proof
from fsqueue.pool.proof_of_life import Process, look_at_process, proof_of_life
from tests.support.users import IDS, USERS_NEEDED

NAMESPACES_NEEDED = pytest.mark.skipif(
    not shutil.which("unshare")
    or subprocess.run(["unshare", "-Urpf", "true"], capture_output=True).returncode != 0,
    reason="no PID namespace can be made here",
)
ASK = (
    "import json, sys; from fsqueue.pool.proof_of_life import look_at_process;"
    "print(look_at_process(json.loads(sys.argv[1])).name)"
)
TELL = (
    "import json; from fsqueue.pool.proof_of_life import proof_of_life;"
    "print(json.dumps(proof_of_life()))"
)


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


def facts_of(pid: int) -> dict[str, Any]:
    """Return what a worker with this pid would have put into its lease."""
    return proof_of_life() | {"pid": pid, "started": proof._stat(pid)[1]}


def ask(facts: dict[str, Any], *before: str) -> str:
    """Return what a process that is started by these words knows of the one described."""
    done = subprocess.run(
        [*before, sys.executable, "-c", ASK, json.dumps(facts)],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def gone_pid() -> int:
    """Return a pid that no process has any more."""
    child = subprocess.Popen(["true"])
    child.wait()
    return child.pid


def test_r11_a_process_that_ended_is_gone_and_one_that_runs_is_not(
    sleeper: subprocess.Popen[bytes],
) -> None:
    facts = facts_of(sleeper.pid)
    assert ask(facts) == "RUNNING"
    sleeper.kill()
    sleeper.wait()
    assert ask(facts) == "GONE"


@NAMESPACES_NEEDED
def test_r11_nothing_is_proved_in_a_pid_namespace_that_sees_the_outer_proc(
    sleeper: subprocess.Popen[bytes],
) -> None:
    """Nor of a process that enlisted there: what /proc shows of its pid is a stranger's."""
    inner = ["unshare", "-Urpf"]
    assert ask(facts_of(sleeper.pid), *inner) == "UNKNOWN"
    told = subprocess.run(
        [*inner, sys.executable, "-c", TELL], capture_output=True, text=True, timeout=30
    )
    facts = json.loads(told.stdout)
    assert facts["started"] == "", "it does not know when it started itself"
    assert look_at_process(facts) is Process.UNKNOWN
    both = (
        "import json, os; from fsqueue.pool.proof_of_life import *; facts = proof_of_life();"
        f"print(look_at_process(facts).name, look_at_process(facts | dict(pid={gone_pid()},"
        "started='7')).name)"
    )
    asked = subprocess.run(
        [*inner, sys.executable, "-c", both], capture_output=True, text=True, timeout=30
    )
    assert asked.stdout.split() == ["UNKNOWN", "UNKNOWN"], asked.stderr


@NAMESPACES_NEEDED
def test_r11_a_pid_namespace_with_its_own_proc_proves_what_ended_in_it() -> None:
    code = (
        "import subprocess; from fsqueue.pool.proof_of_life import *;"
        "child = subprocess.Popen(['sleep', '600']);"
        "facts = proof_of_life() | dict(pid=child.pid, started=open(f'/proc/{child.pid}/stat')"
        ".read().rpartition(')')[2].split()[19]);"
        "print(look_at_process(facts).name); child.kill(); child.wait();"
        "print(look_at_process(facts).name)"
    )
    asked = subprocess.run(
        ["unshare", "-Urpf", "--mount-proc", sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=30,
    )
    if "mount" in asked.stderr:
        pytest.skip("no /proc can be mounted in a PID namespace here")
    assert asked.stdout.split() == ["RUNNING", "GONE"], asked.stderr


@USERS_NEEDED
def test_r11_a_process_that_proc_hides_from_another_user_is_not_gone(
    sleeper: subprocess.Popen[bytes],
) -> None:
    """hidepid=2: /proc shows no other user's process. The kernel still tells that there is one."""
    script = 'mount -t proc -o hidepid=2 proc /proc && exec setpriv "$@"'
    user = str(IDS["mallory"])
    capability = ["--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"]
    hidden = ["unshare", "--mount", "sh", "-c", script, "sh", f"--reuid={user}",
              f"--regid={user}", "--clear-groups", *capability, "--"]  # fmt: skip
    seen = subprocess.run(
        [*hidden, "ls", f"/proc/{sleeper.pid}"], capture_output=True, text=True, timeout=30
    )
    assert "No such file" in seen.stderr, "it is not hidden"
    facts = facts_of(sleeper.pid)
    assert ask(facts, *hidden) == "UNKNOWN"
    sleeper.kill()
    sleeper.wait()
    assert ask(facts, *hidden) == "GONE"


@pytest.mark.parametrize(
    "other",
    [
        {"host": "clone"},
        {"boot": "another"},
        {"pid_namespace": "pid:[1]"},
        {"time_namespace": "time:[1]"},
        {"host": None},
    ],
    ids=str,
)
def test_r11_nothing_is_proved_of_a_process_of_another_host_boot_or_container(
    other: dict[str, Any],
) -> None:
    """A machine cloned while it ran shares boot and namespaces, and is told by its host name."""
    gone = proof_of_life() | {"pid": gone_pid(), "started": "7"}
    assert look_at_process(gone) is Process.GONE
    assert look_at_process(gone | other) is Process.UNKNOWN


def test_r11_a_process_that_is_not_to_be_seen_is_gone_only_if_the_kernel_says_so_too(
    monkeypatch: pytest.MonkeyPatch, sleeper: subprocess.Popen[bytes]
) -> None:
    facts = facts_of(sleeper.pid)
    monkeypatch.setattr(proof, "_stat", lambda pid: ("X", ""))
    assert look_at_process(facts) is Process.UNKNOWN
    assert os.getpid() != sleeper.pid
