"""One fault at a time on a real mount, under the real protocol; and storms of each kind, nightly.

The mount is our own (`faulty.py`): what network file systems answer once in a million operations
comes here on order.
"""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fsqueue.pool import claims
from fsqueue.pool.layout import State
from fsqueue.pool.leases import Lease, lease_names
from fsqueue.pool.names import LeaseName
from fsqueue.pool.settings import PoolDirectory
from fsqueue.storage import atomic, directories
from fsqueue.storage.locks import try_lock
from tests.sharedfs import mounted
from tests.sharedfs.hosts import local_host
from tests.sharedfs.storm import Storm
from tests.support.pools import ManualWorker, make_pool, only_claim
from tests.support.processes import wait_for

pytestmark = pytest.mark.slow
Rule = dict[str, Any]


class Share:
    """One backing directory, mounted twice: here, and there."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.clients: list[subprocess.Popen[bytes]] = []
        (scratch / "backing").mkdir()
        self.rules()

    def rules(self, *rules: Rule) -> None:
        """Have it go wrong by these from now on."""
        mounted.write_rules(self.scratch, rules)

    def mount(self, name: str, *, stale_s: float = 0.0) -> Path:
        """Mount it once more."""
        share = self.scratch / name
        share.mkdir()
        client = mounted.faulty_client(self.scratch, str(share), stale_s)
        self.clients.append(subprocess.Popen(client, stderr=subprocess.DEVNULL))
        wait_for(lambda: os.path.ismount(share), f"the mount {share}")
        return share

    def close(self) -> None:
        """Unmount everything."""
        for share in self.scratch.iterdir():
            if os.path.ismount(share):
                subprocess.run(["umount", "--lazy", str(share)], check=True)
        for client in self.clients:
            client.kill()
            client.wait()


@pytest.fixture
def share(scratch: Path) -> Iterator[Share]:
    """The file system, mounted nowhere yet."""
    found = Share(scratch)
    yield found
    found.close()


def pool_on(share: Share, *claims: str) -> PoolDirectory:
    return make_pool(share.mount("here") / "pool", *claims)


# ---- done, and reported as an error ----


LOST = [
    pytest.param("/running/", lambda hand: hand.take(), State.RUNNING, id="take"),
    pytest.param(
        "/done/", lambda hand: claims.finish(hand.pool, hand.take()), State.DONE, id="finish"
    ),
    pytest.param(
        "/failed/", lambda hand: claims.fail(hand.pool, hand.take()), State.FAILED, id="fail"
    ),
]


@pytest.mark.parametrize(("where", "act", "state"), LOST)
def test_a_claims_move_that_was_done_counts_though_the_mount_says_enoent(
    share: Share, where: str, act: Callable[[ManualWorker], object], state: State
) -> None:
    hand = ManualWorker(pool_on(share, "a.1"))
    share.rules({"op": "rename", "only": where, "error": "ENOENT", "done": True, "times": 1})
    act(hand)
    assert only_claim(hand.pool, state).owner == hand.id


@pytest.mark.parametrize("error", ["ENOENT", "ESTALE"])
def test_a_beat_that_was_done_counts_though_the_mount_says_it_was_not(
    share: Share, error: str
) -> None:
    lease = Lease(pool_on(share), "node1-1-aaaaaa")
    lease.enlist()
    share.rules({"op": "rename", "error": error, "done": True, "times": 1})
    lease.renew()
    lease.renew()
    assert lease.name == LeaseName("node1-1-aaaaaa", beat=2)


def test_an_output_that_was_linked_is_ours_though_the_mount_says_eexist(share: Share) -> None:
    path = f"{share.mount('here')}/output"
    share.rules({"op": "link", "error": "EEXIST", "done": True, "times": 1})
    assert atomic.publish(path, b"ours")
    assert atomic.read(path) == b"ours"
    assert os.listdir(share.scratch / "backing") == ["output"]


def test_an_output_that_another_linked_is_not_ours_whatever_the_mount_says(share: Share) -> None:
    path = f"{share.mount('here')}/output"
    atomic.publish(f"{share.mount('there')}/output", b"theirs")
    assert not atomic.publish(path, b"ours")
    assert atomic.read(path) == b"theirs"


def test_what_was_made_or_removed_twice_is_made_or_removed(share: Share) -> None:
    here = share.mount("here")
    share.rules(
        {"op": "mkdir", "error": "EEXIST", "done": True},
        {"op": "unlink", "error": "ENOENT", "done": True},
        {"op": "rmdir", "error": "ENOENT", "done": True},
    )
    directories.make(f"{here}/made")
    atomic.stage(f"{here}/made/file", (b"x",))
    directories.discard(f"{here}/made")
    assert os.listdir(share.scratch / "backing") == []


def test_a_private_file_that_was_made_twice_is_published_all_the_same(share: Share) -> None:
    """O_EXCL, done and repeated: NFS has a verifier against that; others may not."""
    path = f"{share.mount('here')}/output"
    share.rules({"op": "create", "error": "EEXIST", "done": True, "times": 1})
    assert atomic.publish(path, b"ours")
    assert atomic.read(path) == b"ours"


# ---- stale handles ----


@pytest.mark.parametrize("op", ["open", "read"])
def test_a_stale_handle_is_opened_again(share: Share, op: str) -> None:
    path = f"{share.mount('here')}/file"
    atomic.publish(path, b"whole")
    share.rules({"op": op, "error": "ESTALE", "times": 4})
    assert atomic.read(path) == b"whole"


# ---- what comes only at close, and full disks ----


@pytest.mark.parametrize("error", ["EDQUOT", "ENOSPC", "EIO"])
@pytest.mark.parametrize("op", ["write", "fsync", "close"])
def test_what_could_not_be_kept_is_never_published(share: Share, op: str, error: str) -> None:
    path = f"{share.mount('here')}/output"
    share.rules({"op": op, "error": error, "times": 1})
    with pytest.raises(OSError) as caught:
        atomic.publish(path, b"lost")
    assert caught.value.errno == getattr(errno, error)
    assert os.listdir(share.scratch / "backing") == []
    share.rules()
    assert atomic.publish(path, b"kept")


@pytest.mark.parametrize("error", ["ENOLCK", "ENOSYS", "EIO"])
def test_where_locks_fail_a_thief_goes_on_without(share: Share, error: str) -> None:
    here = share.mount("here")
    share.rules({"op": "flock", "error": error})
    with try_lock(f"{here}/lock") as held:
        assert held


# ---- what is seen late ----


def test_names_that_a_host_believes_in_for_half_a_minute_mislead_no_process(share: Share) -> None:
    """Two hosts, one claim: what either thinks it knows of the names is 30 s old."""
    there = make_pool(share.mount("there", stale_s=30.0) / "pool", "a.1")
    here = PoolDirectory(f"{share.mount('here', stale_s=30.0)}/pool", *_settings(there))
    waiting = claims.waiting(here, "gpu0")[0]
    for pool in (here, there):
        assert os.path.exists(pool.waiting("gpu0", waiting))
    mine = claims.take(there, "gpu0", waiting, "node2-2-bbbbbb")
    assert mine is not None
    assert os.path.exists(here.waiting("gpu0", waiting)), "the mount is not stale"
    assert claims.take(here, "gpu0", waiting, "node1-1-aaaaaa") is None
    assert only_claim(here, State.RUNNING) == mine
    claims.finish(there, mine)
    assert only_claim(here, State.DONE) == mine


def test_a_lease_that_a_host_lists_late_is_not_ended_from_an_old_beat(share: Share) -> None:
    pool = pool_on(share)
    lease = Lease(pool, "node1-1-aaaaaa")
    lease.enlist()
    share.rules({"op": "list", "only": "/workers$", "lag_s": 60.0})
    assert lease_names(pool) == [LeaseName("node1-1-aaaaaa", beat=0)]
    lease.renew()
    assert lease_names(pool) == [LeaseName("node1-1-aaaaaa", beat=0)], "the listing is not late"
    with pytest.raises(FileNotFoundError):
        atomic.rename(f"{pool.root}/workers/node1-1-aaaaaa.b000000", f"{pool.root}/workers/x")
    lease.renew()


def test_a_file_that_is_open_when_it_is_removed_leaves_a_name_that_is_ignored(share: Share) -> None:
    pool = pool_on(share, "a.1")
    directory = pool.spool("gpu0")
    with open(pool.waiting("gpu0", claims.waiting(pool, "gpu0")[0])):
        for name in atomic.names(directory):
            atomic.discard(f"{directory}/{name}")
        assert [name[:12] for name in os.listdir(directory)] == [".fuse_hidden"]
        assert claims.waiting(pool, "gpu0") == []
        directories.discard(directory)  # ENOTEMPTY is put up with


def test_a_mount_whose_clock_is_an_hour_ahead_changes_nothing(share: Share) -> None:
    hand = ManualWorker(pool_on(share, "a.1"))
    share.rules({"op": "stat", "skew_s": 3600.0})
    assert os.stat(hand.pool.root).st_mtime > time.time() + 3000.0
    assert hand.run(hand.take()) is not None
    assert only_claim(hand.pool, State.DONE).owner == hand.id


def _settings(pool: PoolDirectory) -> Sequence[Any]:
    return pool.id, pool.lease_s, pool.attempts_max


# ---- storms ----

MOVES = ("rename", "link", "mkdir", "unlink", "create")
AGAIN = {"rename": "ENOENT", "unlink": "ENOENT"}
REPLIES = [
    {"op": op, "error": AGAIN.get(op, "EEXIST"), "done": True, "chance": 0.05} for op in MOVES
]
REPLIES[-1]["only"] = r"/\.[^/]+$"  # what is created exclusively: no program expects EEXIST else
STALE = [{"op": op, "error": "ESTALE", "chance": 0.05} for op in ("open", "read", "rename")]
FULL = [
    {"op": "close", "only": r"\.", "error": "EDQUOT", "chance": 0.03},
    {"op": "fsync", "error": "ENOSPC", "chance": 0.03},
    {"op": "fsync", "error": "EIO", "chance": 0.03},
]
ODD = [
    {"op": "flock", "error": "ENOLCK"},
    {"op": "stat", "only": "/pool/", "skew_s": 3600.0},  # inputs whose time changes are refused
    {"op": "list", "lag_s": 1.0},
    {"op": "rename", "delay_s": 2.0, "chance": 0.02},
]
STORMS = {
    "lost replies": (REPLIES, 0.0),
    "stale handles, caches of 30 s": (STALE, 30.0),
    "quota and input-output errors": (FULL, 0.0),
    "no locks, late listings, an hour's skew, hangs": (ODD, 0.0),
    "all of that": (REPLIES + STALE + FULL + ODD, 30.0),
}


@pytest.mark.nightly
@pytest.mark.parametrize("kind", STORMS)
def test_every_output_is_there_once_on_a_mount_that_goes_wrong(
    kind: str, scratch: Path, seed: int, tell: Callable[[str], None]
) -> None:
    rules, stale_s = STORMS[kind]
    with mounted.faulty(scratch, stale_s=stale_s) as hosts, ExitStack() as stack:
        witness = local_host("witness", scratch)
        stack.callback(witness.kill)
        witness.share = f"{scratch}/backing"  # it sees what is
        begin = partial(mounted.write_rules, scratch, rules)
        storm = Storm(hosts, "faulty", seed, claims=40, lease_s=6.0, after_planning=begin)
        storm.watcher = witness
        storm.expected = tuple(map(os.strerror, (errno.EIO, errno.ESTALE)))
        tell(f"{kind}: {storm.run().verify()}")
