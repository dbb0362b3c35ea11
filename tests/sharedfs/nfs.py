"""Kernel NFS between three kernels: a server and two clients in User-Mode Linux, on our own cable.

Each guest is one process tree in a process namespace, so that power fails for it with one SIGKILL.
Their cables end in a bridge in a network that holds nothing else; there they are pulled and put
back. Both versions are mounted: /mnt/v3 and /mnt/v4 (4.2), of one exported directory.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from tests.sharedfs.hosts import HERE, PATH, Host, local_host
from tests.sharedfs.mounted import need

BOOT_S: Final = 60.0
MEMORY: Final = "256M"
NUMBERS: Final = {"server": 10, "hosta": 11, "hostb": 12}

PROGRAMS: Final = {
    "linux.uml": "user-mode-linux",
    "rpc.nfsd": "nfs-kernel-server",
    "mount.nfs": "nfs-common",
    "modprobe": "kmod",
    "mkfs.ext4": "e2fsprogs",
    "gcc": "gcc libc6-dev",
}


def address(name: str) -> str:
    """Return a guest's address."""
    return f"10.78.0.{NUMBERS[name]}"


class Guest(Host):
    """A host with its own kernel, a cable and a power switch."""

    def __init__(self, name: str, switch: Host, scratch: Path, *, rebooted: bool = False) -> None:
        self._scratch = scratch
        self._tap = f"t{NUMBERS[name]}"
        network = ["nsenter", f"--net=/proc/{switch.pid}/ns/net"]
        self._kernel = self._boot(name, network, rebooted=rebooted)
        relay = [*network, sys.executable, str(HERE / "relay.py"), address(name), "7000"]
        super().__init__(name, relay, "/mnt/v4")
        self._cable = switch, self._tap

    def _boot(self, name: str, network: list[str], *, rebooted: bool) -> subprocess.Popen[bytes]:
        role = "server" if name == "server" else "client"
        disk = [f"ubda={self._scratch}/disk"] if role == "server" else []
        command = [
            *network,
            *("unshare", "--fork", "--kill-child", "--pid", "--mount-proc"),
            *("env", f"LD_PRELOAD={self._scratch}/xsave.so", "TMPDIR=/dev/shm", "linux.uml"),
            *(f"mem={MEMORY}", f"umid={name}", f"uml_dir={self._scratch}/uml", *disk),
            *("root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", "quiet"),
            *(f"init={HERE}/guest-init.sh", "con=null", "con0=null,fd:1"),
            f"vec0:transport=tap,ifname={self._tap},depth=64,gro=1",
            *(f"ROLE={role}", f"NAME={name}", f"ADDRESS={address(name)}"),
            *(f"SERVER={address('server')}", f"AGENT={HERE}/agent.py", f"PYTHON={sys.executable}"),
            *(["REBOOTED=1"] if rebooted else []),
        ]
        with open(self._scratch / f"{name}.console", "ab") as console:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                env=os.environ | {"PATH": PATH},
                start_new_session=True,
            )

    def ready(self) -> Guest:
        """Wait until it serves, or has mounted."""
        self.run("true", deadline_s=BOOT_S)
        return self

    def kill(self) -> None:
        """Let its power fail."""
        super().kill()
        if self._kernel.poll() is None:
            self._kernel.send_signal(signal.SIGKILL)
        self._kernel.wait()

    def power_off(self) -> None:
        """Let its power fail."""
        self.kill()

    def _signal_all(self, number: signal.Signals) -> None:
        """Signal its kernel, and so all that runs there."""
        children = Path(f"/proc/{self._kernel.pid}/task/{self._kernel.pid}/children").read_text()
        os.kill(int(children.split()[0]), number)


class Lan:
    """The server, the clients, and the cable between them."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self._stack = ExitStack()
        self.cable: Host
        self.guests: dict[str, Guest] = {}

    def __enter__(self) -> Lan:
        for program, package in PROGRAMS.items():
            need(program, f"Debian: {package}")
        shim = ["gcc", "-O2", "-shared", "-fPIC", "-o", f"{self.scratch}/xsave.so"]
        subprocess.run([*shim, str(HERE / "xsave.c")], check=True)
        with open(self.scratch / "disk", "wb") as disk:
            disk.truncate(1 << 30)
        mkfs = shutil.which("mkfs.ext4", path=PATH) or ""
        subprocess.run([mkfs, "-q", f"{self.scratch}/disk"], check=True)
        self.cable = local_host("cable", self.scratch)
        self._stack.callback(self.cable.kill)
        self.cable.run("sh", "-c", "ip link add br0 type bridge && ip link set br0 up && "
                                   "ip addr add 10.78.0.1/24 dev br0")  # fmt: skip
        for number in NUMBERS.values():
            tap = f"ip tuntap add dev t{number} mode tap && ip link set t{number} master br0 up"
            self.cable.run("sh", "-c", tap)
        for name in NUMBERS:
            self.boot(name)
        for guest in self.guests.values():
            guest.ready()
        return self

    def __exit__(self, *_: object) -> None:
        for guest in self.guests.values():
            guest.kill()
        self._stack.close()

    def boot(self, name: str, *, rebooted: bool = False) -> Guest:
        """Switch a guest on."""
        self.guests[name] = Guest(name, self.cable, self.scratch, rebooted=rebooted)
        return self.guests[name]

    @property
    def server(self) -> Guest:
        return self.guests["server"]

    def clients(self, version: str) -> list[Host]:
        """Return the clients, with their share the mount of this version."""
        found: list[Host] = [self.guests["hosta"], self.guests["hostb"]]
        for host in found:
            host.share = f"/mnt/v{version[0]}"
        return found

    def mute(self, name: str) -> None:
        """Let what the server answers to a client go astray; what the client asks is still done."""
        entry = ["ip", "neigh", "replace", address(name), "lladdr", "02:00:00:00:00:99"]
        self.server.run(*entry, "dev", "vec0", "nud", "permanent")


@contextmanager
def nfs(scratch: Path) -> Iterator[Lan]:
    """Boot the three, and let their power fail in the end."""
    with Lan(scratch) as lan:
        yield lan
