"""Start and stop a real Slurm here: a controller, four virtual nodes, munge.

Everything lives in one private directory with a short path (Unix sockets), and listens on the
loopback interface alone. Each daemon is a child of this process, in the foreground, and is ended by
its own process id. There is no cgroup and no accounting; the GPUs are names for /dev/null and the
like, which nobody opens.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.processes import wait_for

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "munged", "mungekey")
PACKAGES = "slurmctld slurmd slurm-client munge"
GPUS = {
    "n1": ("rtx4090", "rtx4090"),
    "n2": ("rtx3090", "rtx3090"),
    "n3": ("rtx4090", "rtx3090"),
    "n4": ("rtx4090", "rtx3090"),
}
DEVICES = ("/dev/null", "/dev/zero")  # must differ within a node, and be character devices
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
ENDED = frozenset("COMPLETED FAILED CANCELLED TIMEOUT PREEMPTED NODE_FAIL OUT_OF_MEMORY".split())

CONF = """\
ClusterName=fsqueue
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits until its old credential has surely expired: 6 s, and not 120.
AuthInfo=socket={root}/munge.sock,cred_expire=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmctldPidFile={root}/run/ctld.pid
SlurmdPidFile={root}/run/%n.pid
SlurmctldLogFile={root}/log/ctld.log
SlurmdLogFile={root}/log/%n.log
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool.%n
# linuxproc would lose the children of a shell that dies.
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={root}/log/ended.txt
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=100
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1,sched_min_interval=0
GresTypes=gpu
ReturnToService=2
KillWait=3
MaxArraySize=16
MinJobAge=86400
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=10 PriorityTier=1
PartitionName=high Nodes=ALL MaxTime=INFINITE DefaultTime=10 PriorityTier=10 PreemptMode=OFF
"""


def missing() -> list[str]:
    """Return the programs of Slurm that are not installed here."""
    return [program for program in PROGRAMS if shutil.which(program, path=PATH) is None]


class Cluster:
    """One private Slurm. `start` it, use its methods, `stop` it."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="fsq-slurm-", dir="/tmp"))
        self.conf = self.root / "slurm.conf"
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def environ(self) -> dict[str, str]:
        """The environment in which Slurm's commands speak with this cluster."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))}
        return kept | {"PATH": PATH, "SLURM_CONF": str(self.conf)}

    # ---- life ----

    def start(self) -> None:
        """Start the daemons, and wait until every node is idle."""
        for name in ("run", "log", "state", *(f"spool.{node}" for node in GPUS)):
            (self.root / name).mkdir(exist_ok=True)
        self._configure()
        self._call("mungekey", "--create", f"--keyfile={self.root}/munge.key")
        self._daemon(
            "munged", "--foreground", "--force", f"--key-file={self.root}/munge.key",
            f"--socket={self.root}/munge.sock", f"--pid-file={self.root}/run/munged.pid",
            f"--log-file={self.root}/log/munged.log", f"--seed-file={self.root}/munge.seed",
        )  # fmt: skip
        wait_for((self.root / "munge.sock").exists, "munged's socket")
        self.start_controller("-c")
        for node in GPUS:
            self.start_node(node)
        wait_for(self.idle, f"{len(GPUS)} idle nodes; see {self.root}/log")

    def start_node(self, node: str) -> None:
        """Start the slurmd of a node."""
        self._daemon("slurmd", "-D", "-f", str(self.conf), "-N", node, key=node)

    def lose_node(self, node: str) -> None:
        """Let the controller find a node dead, while the processes of its jobs live on."""
        daemon = self._daemons.pop(node)
        daemon.kill()
        daemon.wait()
        self.scontrol("update", f"NodeName={node}", "State=DOWN", "Reason=test")
        # What it last said may still be on its way, and would bring it back into service.
        self.scontrol("update", f"NodeName={node}", "State=DRAIN", "Reason=test")

    def start_controller(self, *options: str) -> None:
        """Start the controller: with `-c` it forgets what it knew before."""
        self._daemon("slurmctld", "-D", *options, "-f", str(self.conf))

    def stop_controller(self) -> None:
        """End the controller, which saves what it knows; the nodes and the jobs live on."""
        daemon = self._daemons.pop("slurmctld")
        daemon.terminate()
        daemon.wait(10)

    def idle(self) -> bool:
        """Return whether every node is up and free."""
        done = self.run("sinfo", "--noheader", "--states=idle", "--partition=main", "--format=%D")
        return done.stdout.strip() == str(len(GPUS))

    def clear(self) -> None:
        """End every job, and bring every node back."""
        if "slurmctld" not in self._daemons:
            self.start_controller()
        self.run("scancel", "--user", str(os.getuid()))
        for node in GPUS.keys() - self._daemons.keys():
            self.start_node(node)
        for node in GPUS:
            self.run("scontrol", "update", f"NodeName={node}", "State=RESUME")
        wait_for(self.idle, f"{len(GPUS)} idle nodes; see {self.root}/log")

    def stop(self) -> None:
        """End the jobs, the daemons and what the jobs left behind; remove the directory."""
        self.run("scancel", "--user", str(os.getuid()))
        for name in [*GPUS, "slurmctld", "munged"]:
            daemon = self._daemons.pop(name, None)
            if daemon is None:
                continue
            daemon.terminate()
            try:
                daemon.wait(4)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for pid in self.left_behind():
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.root, ignore_errors=True)

    def left_behind(self) -> list[int]:
        """Return the processes of this cluster's jobs: their environment names its slurm.conf."""
        mine = f"SLURM_CONF={self.conf}".encode()
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                name = Path(f"/proc/{pid}/comm").read_text()
            except OSError:
                continue  # it ended meanwhile, or is not ours
            a_job = any(word.startswith(b"SLURM_JOB_ID=") for word in environ)
            if mine in environ and (a_job or name.startswith("slurmstepd")):
                found.append(int(pid))
        return found

    def _configure(self) -> None:
        ports = _free_ports(len(GPUS) + 1)
        host = socket.gethostname().partition(".")[0]
        nodes, gres = [], ["AutoDetect=off"]
        for (node, types), port in zip(GPUS.items(), ports[1:], strict=True):
            counts = ",".join(f"gpu:{name}:{types.count(name)}" for name in dict.fromkeys(types))
            nodes.append(
                f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=8 "
                f"RealMemory=8000 Gres={counts} State=UNKNOWN"
            )
            gres += [
                f"NodeName={node} Name=gpu Type={name} File={device}"
                for name, device in zip(types, DEVICES, strict=True)
            ]
        user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout
        text = CONF.format(
            host=host, port=ports[0], user=user.strip(), root=self.root, nodes="\n".join(nodes)
        )
        self.conf.write_text(text)
        (self.root / "gres.conf").write_text("\n".join(gres) + "\n")

    def _daemon(self, *argv: str, key: str = "") -> None:
        program = shutil.which(argv[0], path=PATH)
        assert program is not None, argv[0]
        with open(self.root / "log" / "daemons.log", "ab") as log:
            self._daemons[key or argv[0]] = subprocess.Popen(
                [program, *argv[1:]],
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    # ---- use ----

    def run(
        self, *argv: str, env: Mapping[str, str] | None = None, text: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command against this cluster; whatever it returns."""
        return subprocess.run(
            argv,
            env=self.environ | dict(env or {}),
            input=text or "",
            capture_output=True,
            text=True,
            timeout=30,
        )

    def _call(self, *argv: str) -> str:
        done = self.run(*argv)
        assert done.returncode == 0, f"{argv}: {done.stderr or done.stdout}"
        return done.stdout

    def scontrol(self, *words: str) -> str:
        """Run scontrol; it must succeed."""
        return self._call("scontrol", *words)

    def scancel(self, *words: str) -> str:
        """Run scancel; it must succeed."""
        return self._call("scancel", *words)

    def submit(self, *options: str, wrap: str) -> str:
        """Submit a command as a job; return its id."""
        return self._call(
            "sbatch", "--parsable", *options, "--output=/dev/null", "--wrap", wrap
        ).strip()

    def states(self) -> dict[str, str]:
        """Return the state of every job and task since the cluster began, by its full name."""
        text = self._call(
            "squeue", "--noheader", "--array", "--states=all", "--Format=JobArrayID:40,State:30"
        )
        return dict(line.split() for line in text.splitlines())  # type: ignore[misc]

    def facts(self, job: str) -> dict[str, str]:
        """Return the fields of `scontrol show job`."""
        words = self._call("scontrol", "-o", "show", "job", job).split()
        return dict(word.partition("=")[::2] for word in words)  # type: ignore[misc]

    def wait_for_end(self, jobs: Sequence[str], *, deadline_s: float = 60.0) -> dict[str, str]:
        """Wait until these jobs have ended for good; return how."""

        def ended() -> dict[str, str]:
            states = self.states()
            found = {job: states.get(job, "") for job in jobs}
            return found if set(found.values()) <= ENDED else {}

        return wait_for(
            ended, f"jobs {', '.join(jobs)} to end: {self.states()}", deadline_s=deadline_s
        )


def _free_ports(count: int) -> list[int]:
    """Return ports that are free just now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
