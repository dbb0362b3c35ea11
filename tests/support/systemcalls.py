"""Count the metadata operations that a process does inside one directory, with strace."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from tests.support.processes import FSQUEUE, Word, environment

METADATA = (
    "%file,%stat,%lstat,%fstat,getdents,getdents64,flock,fsync,fdatasync,ftruncate,fchmod,fchown"
)
"""Whatever names a file or asks for what a directory or an inode says; read, write and close are
none of it. `-y` shows the path behind a descriptor, so that calls on one are counted too."""


def count_metadata(
    inside: str | Path, words: list[Word], log: Path, *, env: Mapping[str, str] | None = None
) -> Counter[str]:
    """Run `fsqueue WORD...` under strace; return its calls by name on paths in `inside`."""
    command = ["strace", "-f", "-y", "-qq", "-s", "512", "-o", log, "-e", f"trace={METADATA}"]
    run = subprocess.run(
        [*command, *FSQUEUE, *words],
        env=environment(env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert run.returncode in (0, 75), run.stderr
    calls = re.compile(rf"(?:\d+ +)?(?:<\.\.\. )?(\w+)\(.*{re.escape(str(inside))}/")
    lines = log.read_text(errors="replace").splitlines()
    return Counter(match[1] for line in lines if (match := calls.match(line)))
