"""Hosts to run workers on: own processes, mounts and host name, and all ended by one kill.

A `Host` is an agent (`agent.py`) and what it has started. A local one lives in namespaces of its
own, so that workers of two of them cannot prove each other's death, and whatever is mounted there
is unmounted by its end. `nfs.py` has hosts with their own kernel.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import DEADLINE_S, wait_for

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PROGRAMS = Path(pytest.__file__).parents[4] / "bin"
"""Where pip puts programs, also when this environment rests on another one."""
PATH = os.pathsep.join([str(PROGRAMS), os.environ["PATH"], "/usr/sbin", "/sbin"])
ENVIRONMENT = {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "PATH": PATH}
FSQUEUE = (sys.executable, "-m", "fsqueue")
SPACES = "unshare --fork --kill-child --pid --mount-proc --mount --uts --net".split()
NETWORK = "10.77.0"


class Failed(Exception):
    """A command on a host did not end as it should."""


class Host:
    """One host, and the directory under which it sees the share."""

    def __init__(self, name: str, argv: Sequence[str], share: str) -> None:
        self.name = name
        self.share = share
        self._lock = threading.Lock()
        self._agent = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | ENVIRONMENT,
            start_new_session=True,
        )
        self.pid = self._agent.pid
        self._cable: tuple[Host, str]

    def order(self, do: str, *words: Any) -> Any:
        """Have the agent do something; return its answer. Hangs while the host is cut off."""
        assert self._agent.stdin is not None and self._agent.stdout is not None
        with self._lock:
            self._agent.stdin.write(json.dumps({"do": do, "with": words}) + "\n")
            self._agent.stdin.flush()
            line = self._agent.stdout.readline()
        if not line:
            raise Failed(f"host {self.name} is gone")
        answer = json.loads(line)
        if "error" in answer:
            raise Failed(f"{do} {words} on {self.name}: {answer['error']}")
        return answer["answer"]

    def start(self, *argv: str, env: Mapping[str, str] | None = None) -> Process:
        """Start a command there."""
        return Process(self, self.order("start", list(argv), ENVIRONMENT | dict(env or {})), argv)

    def run(self, *argv: str, deadline_s: float = DEADLINE_S, ok: Sequence[int] = (0,)) -> str:
        """Run a command to its end; return its stdout. Raises Failed for another exit status."""
        process = self.start(*argv)
        status = process.reap(deadline_s=deadline_s)
        out, err = process.said()
        if status not in ok:
            raise Failed(f"{self.name}: {' '.join(argv)} left with {status}:\n{out}{err}")
        return out

    def fsqueue(self, *words: str) -> Process:
        """Start an fsqueue command there."""
        return self.start(*FSQUEUE, *words)

    def freeze(self) -> None:
        """Stop all that runs there, kernels and clients of file systems included."""
        self._signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._signal_all(signal.SIGCONT)

    def _signal_all(self, number: signal.Signals) -> None:
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        space = os.readlink(f"/proc/{children.split()[0]}/ns/pid")
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if os.readlink(process / "ns/pid") == space:
                    os.kill(int(process.name), number)
            except OSError:
                continue  # it has ended meanwhile

    def plug_in(self, switch: Host, number: int) -> None:
        """Lay a cable to a bridge on another host, br0."""
        self._cable = switch, f"cable{number}"
        # By the test's own process, the only one to which both hosts' processes have numbers.
        there = ["nsenter", f"--net=/proc/{switch.pid}/ns/net", "ip", "link", "add"]
        veth = [self._cable[1], "type", "veth", "peer", "name", "eth0", "netns", str(self.pid)]
        subprocess.run([*there, *veth], check=True)
        address = f"{NETWORK}.{number}/24"
        self.run("sh", "-c", f"ip addr add {address} dev eth0 && ip link set eth0 up")
        self.plug()
        switch.run("ip", "link", "set", self._cable[1], "up")

    def plug(self) -> None:
        """Put its cable back."""
        switch, name = self._cable
        switch.run("ip", "link", "set", name, "master", "br0")

    def unplug(self) -> None:
        """Pull its cable."""
        switch, name = self._cable
        switch.run("ip", "link", "set", name, "nomaster")

    def power_off(self) -> None:
        """End it without closing any connection."""
        self.unplug()
        self.kill()

    def kill(self) -> None:
        """End the host with everything on it, at once; its connections are closed."""
        if self._agent.poll() is None:
            self._agent.send_signal(signal.SIGKILL)
        self._agent.wait()


class Process:
    """A process on a host."""

    def __init__(self, host: Host, pid: int, argv: Sequence[str]) -> None:
        self.host, self.pid, self.argv = host, pid, argv

    def send(self, number: signal.Signals) -> None:
        """Signal it alone, if it still runs."""
        self.host.order("signal", self.pid, int(number))

    def status(self) -> int | None:
        """Return its exit status, None while it runs."""
        status: int | None = self.host.order("poll", self.pid)
        return status

    def said(self) -> tuple[str, str]:
        """Return its stdout and its stderr so far."""
        out, err = self.host.order("said", self.pid)
        return out, err

    def reap(self, *, deadline_s: float = DEADLINE_S) -> int:
        """Wait for its end; return its exit status."""
        try:
            wait_for(lambda: self.status() is not None, "its end", deadline_s=deadline_s)
        except TimeoutError as error:
            said = "".join(self.said())
            raise TimeoutError(
                f"{self.host.name}: {' '.join(self.argv)}: {error}\n{said}"
            ) from None
        status = self.status()
        assert status is not None
        return status


def local_host(name: str, scratch: Path) -> Host:
    """Start a host on this kernel; its share is an empty directory until something is mounted.

    Its network is its own, with nothing but loopback until it is plugged in.
    """
    logs, share = scratch / f"{name}.logs", scratch / "share"
    share.mkdir(exist_ok=True)
    setup = 'hostname "$1"; ip link set lo up; shift; exec "$@"'
    agent = [sys.executable, str(HERE / "agent.py"), str(logs)]
    host = Host(name, [*SPACES, "sh", "-c", setup, "sh", name, *agent], str(share))
    host.run("true")
    return host
