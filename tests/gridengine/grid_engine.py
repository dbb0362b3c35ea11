"""Start and stop a real Grid Engine here: a master and one execution host with eight slots.

Everything lives in one private directory, a copy of what the Debian packages install, and listens
on two free ports. The daemons and all commands run in a UTS namespace of their own, where the host
is called localhost: master and clients must agree on one name that resolves. They are ended by the
process ids that they write down.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

from tests.support.processes import alive, wait_for

PROGRAMS = ("sge_qmaster", "sge_execd", "qsub", "qconf", "unshare", "nsenter")
PACKAGES = "gridengine-master gridengine-exec gridengine-client"
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
INSTALLED = Path("/var/lib/gridengine")
DATABASE = Path("/var/spool/gridengine/spooldb")

HOST = """\
hostname localhost
load_scaling NONE
complex_values NONE
user_lists NONE
xuser_lists NONE
projects NONE
xprojects NONE
usage_scaling NONE
report_variables NONE
"""
QUEUE = {
    "qname": "all.q",
    "hostlist": "@allhosts",
    "slots": "8",
    "shell": "/bin/bash",
    "pe_list": "NONE",
    "load_thresholds": "NONE",  # else a busy machine takes no job
    "notify": "00:00:20",
    "rerun": "TRUE",
}


def missing() -> str:
    """Return why no Grid Engine can be started here, "" if it can."""
    lacking = [program for program in PROGRAMS if shutil.which(program, path=PATH) is None]
    if lacking:
        return f"{', '.join(lacking)}: not installed (apt-get install {PACKAGES})"
    return "" if os.geteuid() == 0 else "only root can name a host"


class GridEngine:
    """One private Grid Engine. `start` it, use its methods, `stop` it."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="fsq-sge-", dir="/tmp"))
        self._ports = _free_ports(2)
        self._namespace: subprocess.Popen[bytes] | None = None

    @property
    def environ(self) -> dict[str, str]:
        """The environment in which its commands speak with it."""
        return os.environ | {
            "PATH": PATH,
            "SGE_ROOT": str(self.root),
            "SGE_CELL": "default",
            "SGE_QMASTER_PORT": str(self._ports[0]),
            "SGE_EXECD_PORT": str(self._ports[1]),
        }

    # ---- life ----

    def start(self) -> None:
        """Start the daemons, and wait until the host takes jobs."""
        self._namespace = subprocess.Popen(
            ["unshare", "--uts", "sh", "-c", "hostname localhost && exec sleep 100000"]
        )
        self._lay_out()
        wait_for(lambda: self.run("hostname") == "localhost\n", "the name of the host")
        self.run("sge_qmaster")
        wait_for(lambda: self._works("qconf", "-sconf"), "the master")
        for option in ("-as", "-ah"):
            self._works("qconf", option, "localhost")
        self._configure()
        self.run("sge_execd")
        wait_for(lambda: "lx" in self.run("qstat", "-f"), "the execution host", deadline_s=60.0)

    def stop(self) -> None:
        """End the daemons and what they started, and remove everything."""
        self._works("qdel", "-f", "-u", "*")
        for path in self.root.glob("spool/**/*.pid"):
            _end(path)
        if self._namespace is not None:
            self._namespace.kill()
            self._namespace.wait()
        shutil.rmtree(self.root, ignore_errors=True)

    def _lay_out(self) -> None:
        spool = self.root / "spool"
        for entry in INSTALLED.iterdir():
            if entry.name != "default":
                (self.root / entry.name).symlink_to(entry)
        shutil.copytree(INSTALLED / "default", self.root / "default")
        for name in ("execd", "qmaster"):
            (spool / name).mkdir(parents=True)
        shutil.copytree(DATABASE, spool / "spooldb")
        common = (self.root / "default/common").resolve()
        changed = {
            "spooling_params": f"{spool}/spooldb",
            "qmaster_spool_dir": f"{spool}/qmaster",
            "admin_user": "none",
        }
        _rewrite(common / "bootstrap", changed)
        (common / "act_qmaster").write_text("localhost\n")

    def _configure(self) -> None:
        (self.root / "host").write_text(HOST)
        (self.root / "hosts").write_text("group_name @allhosts\nhostlist localhost\n")
        self._works("qconf", "-Ae", str(self.root / "host"))
        self._works("qconf", "-Ahgrp", str(self.root / "hosts"))
        conf = self.root / "global"
        conf.write_text(self.run("qconf", "-sconf"))
        spool = f"{self.root}/spool/execd"
        _rewrite(conf, {"min_uid": "0", "min_gid": "0", "execd_spool_dir": spool})
        self.run("qconf", "-Mconf", str(conf))
        queue = self.root / "queue"
        queue.write_text(self.run("qconf", "-sq"))
        _rewrite(queue, QUEUE)
        self.run("qconf", "-Aq", str(queue))

    # ---- use ----

    def run(self, *words: str) -> str:
        """Run a command beside the daemons; return what it printed. AssertionError if it failed."""
        done = self._call(*words)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def submit(self, script: Path) -> str:
        """Submit a script; return the job's id."""
        return self.run("qsub", "-terse", str(script)).partition(".")[0].strip()

    def tasks(self) -> dict[int, str]:
        """Return the state of each task that is known to the queue, by its number."""
        rows = [line.split() for line in self.run("qstat").splitlines()[2:]]
        return {int(row[-1]): row[4] for row in rows if row[-1].isdecimal()}

    def _works(self, *words: str) -> bool:
        return self._call(*words).returncode == 0

    def _call(self, *words: str) -> subprocess.CompletedProcess[str]:
        assert self._namespace is not None
        inside = ["nsenter", f"--uts=/proc/{self._namespace.pid}/ns/uts"]
        return subprocess.run(
            [*inside, *words],
            env=self.environ,
            cwd=self.root,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )


def _rewrite(path: Path, changed: dict[str, str]) -> None:
    lines = []
    for line in path.read_text().splitlines():
        name = line.partition(" ")[0]
        lines.append(f"{name} {changed[name]}" if name in changed else line)
    path.write_text("\n".join(lines) + "\n")


def _end(path: Path) -> None:
    try:
        pid = int(path.read_text())
        os.kill(pid, signal.SIGKILL)
    except (OSError, ValueError):
        return  # RACE: it has ended by itself
    wait_for(lambda: not alive(pid), f"process {pid} of {path.name} to end")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
