"""Run commands as on another host: another name, other processes, other clocks.

The kernel gives it a namespace for its name, its processes and its monotonic clocks. The wall clock
has none, and is shifted by a preloaded library.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.processes import FSQUEUE

NAMESPACES = ("--uts", "--pid", "--fork", "--kill-child", "--mount-proc", "--time")


@functools.cache
def preload() -> Path:
    """Compile the library that shifts the wall clock, once."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler here to make a wall clock differ")
    directory = tempfile.mkdtemp(prefix="clocks-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    target = Path(directory, "shift.so")
    source = Path(__file__).with_name("shift.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", target, source, "-ldl"], check=True)
    return target


@functools.cache
def unshare() -> tuple[str, ...]:
    """Return the command that makes the namespaces, or skip."""
    command = ("unshare", *NAMESPACES, *(() if os.geteuid() == 0 else ("--map-root-user",)))
    probe = [*command, "--monotonic", "60", "--boottime", "60", "hostname", "probe"]
    if shutil.which("unshare") is None or subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("this kernel or container allows no namespaces to stand in for hosts")
    return command


@dataclass(frozen=True)
class Host:
    """A host whose clocks are this many seconds ahead of this machine's."""

    name: str
    wall_s: int = 0
    up_s: int = 0

    def command(self, *words: str) -> list[str | Path]:
        """Return the command that runs `fsqueue WORD...` there."""
        clocks = ["--monotonic", str(self.up_s), "--boottime", str(self.up_s)]
        shell = ["sh", "-c", 'hostname "$0" && exec "$@"', self.name]
        shift = ["env", f"LD_PRELOAD={preload()}", f"CLOCK_SHIFT={self.wall_s}"]
        return [*unshare(), *clocks, *shell, *shift, *FSQUEUE, *words]

    def run(self, *words: str) -> str:
        """Run `fsqueue WORD...` there to its end, and well; return what it printed."""
        env = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(
            self.command(*words), env=env, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self, *words: str, log: Path) -> subprocess.Popen[bytes]:
        """Start `fsqueue WORD...` there. Killing what is returned is a power cut."""
        with open(log, "ab") as stderr:
            return subprocess.Popen(
                self.command(*words),
                env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
            )
