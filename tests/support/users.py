"""Several users of one machine: alice and bob share the group `lab`, mallory is in no group.

They exist only for the processes that are run as them: in a mount namespace with its own
/etc/passwd and /etc/group. Each may read everything, so that a checkout and a Python below /root
serve them, too; what they may write, and so own, is theirs alone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.processes import FSQUEUE, Word, environment

IDS = {"alice": 25001, "bob": 25002, "mallory": 25003}
LAB = 27000
MEMBERS = ("alice", "bob")
NEEDED = ("unshare", "setpriv", "mount")

USERS_NEEDED = pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, NEEDED)),
    reason="only root can be several users, with unshare, setpriv and mount",
)
_ENTER = (
    'mount --bind "$1/passwd" /etc/passwd && mount --bind "$1/group" /etc/group && umask "$2" && '
    'shift 2 && exec setpriv "$@"'
)


class Users:
    """Run commands as one of them."""

    def __init__(self, etc: Path) -> None:
        self._etc = etc
        etc.mkdir()
        users = "".join(f"{name}:x:{id}:{id}::/:/bin/sh\n" for name, id in IDS.items())
        (etc / "passwd").write_text(f"root:x:0:0::/root:/bin/sh\n{users}")
        groups = "".join(f"{name}:x:{id}:\n" for name, id in IDS.items())
        (etc / "group").write_text(f"root:x:0:\n{groups}lab:x:{LAB}:{','.join(MEMBERS)}\n")

    def run(
        self,
        user: str,
        *argv: Word,
        umask: int = 0o022,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end as `user`."""
        groups = ["--groups", str(LAB)] if user in MEMBERS else ["--clear-groups"]
        capability = ["--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"]
        identity = [f"--reuid={IDS[user]}", f"--regid={IDS[user]}", *groups, *capability]
        enter = ["unshare", "--mount", "sh", "-c", _ENTER, "sh", str(self._etc), f"{umask:03o}"]
        return subprocess.run(
            [*enter, *identity, "--", *argv],
            env=environment(env) | {"HOME": "/", "TMPDIR": "/tmp"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def fsqueue(
        self, user: str, *words: Word, umask: int = 0o022, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of fsqueue as `user`."""
        return self.run(user, *FSQUEUE, *words, umask=umask, env=env)

    def python(self, user: str, code: str, *words: Word) -> subprocess.CompletedProcess[str]:
        """Run Python code as `user`; what follows is its sys.argv[1:]."""
        return self.run(user, sys.executable, "-c", f"import os, sys\n{code}", *words)


def give(path: Path, user: str, *, group: int | None = None, mode: int | None = None) -> Path:
    """Give a file or directory to a user; return it."""
    os.chown(path, IDS[user], IDS[user] if group is None else group)
    if mode is not None:
        os.chmod(path, mode)
    return path
