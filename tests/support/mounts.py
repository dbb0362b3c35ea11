"""Mount a small or a read-only file system that nobody else sees and that goes away by itself.

A process in a mount namespace of its own mounts it and stays; what it sees is reached through
/proc/PID/root. When it ends, the mount is gone. Without root a user namespace stands in, where the
kernel grants one.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def tiny_disk(directory: Path, size_kib: int) -> Iterator[Path]:
    """Yield a path to an empty tmpfs of so many KiB, mounted over `directory`."""
    with _mounted('mount -t tmpfs -o "size=$2k" none "$1"', directory, str(size_kib)) as path:
        yield path


@contextmanager
def read_only(directory: Path) -> Iterator[Path]:
    """Yield a path by which `directory` can be read and not written, even by root."""
    script = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1"'
    with _mounted(script, directory) as path:
        yield path


@contextmanager
def _mounted(script: str, directory: Path, *words: str) -> Iterator[Path]:
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare(1) here to mount something privately")
    unshare = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "-r"]
    shell = [
        "sh",
        "-c",
        f"{script} && echo mounted && exec sleep 600",
        "sh",
        str(directory),
        *words,
    ]
    holder = subprocess.Popen(
        [*unshare, *shell], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None and holder.stderr is not None
        if holder.stdout.readline() != "mounted\n":
            pytest.skip(f"nothing can be mounted privately here: {holder.stderr.read().strip()}")
        yield Path(f"/proc/{holder.pid}/root{directory}")
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
