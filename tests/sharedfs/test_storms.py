"""Exactly once on real shared file systems: two hosts, workers killed at random on both.

GlusterFS and NFS run by default; the other file systems and the long storms are nightly.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.sharedfs import mounted
from tests.sharedfs.nfs import Lan
from tests.sharedfs.storm import Storm

pytestmark = pytest.mark.slow
Tell = Callable[[str], None]


@pytest.mark.parametrize(
    "name",
    ["glusterfs"]
    + [pytest.param(name, marks=pytest.mark.nightly) for name in ("juicefs", "moosefs", "cephfs")],
)
def test_every_output_is_there_once_on_a_cluster_file_system(
    name: str, scratch: Path, seed: int, tell: Tell
) -> None:
    with getattr(mounted, name)(scratch) as hosts:
        tell(Storm(hosts, name, seed).run().verify())


@pytest.mark.parametrize("version", ["3", "4.2"])
def test_every_output_is_there_once_on_nfs(version: str, lan: Lan, seed: int, tell: Tell) -> None:
    storm = Storm(lan.clients(version), f"nfs-{version}", seed, claims=30, kill_every_s=1.0)
    tell(storm.run().verify())


def test_every_output_is_there_once_where_the_pool_is_mounted_at_two_places(
    lan: Lan, seed: int, tell: Tell
) -> None:
    """The inputs are not where they were planned for the second host, which has a path map."""
    first, second = lan.clients("4.2")
    planned, elsewhere = second.share, "/mnt/lab data"
    second.run("mkdir", elsewhere)
    second.run("mount", "--move", planned, elsewhere)
    second.share = elsewhere
    try:
        storm = Storm([first, second], "two-places", seed, claims=30, kill_every_s=1.0).run()
        tell(storm.verify())
        done = second.run("ls", f"{storm.pool(second)}/done").split()
        assert {host for name in done for host in ("@hosta-", "@hostb-") if host in name} == {
            "@hosta-",
            "@hostb-",
        }
    finally:
        second.run("mount", "--move", elsewhere, planned)


@pytest.mark.nightly
def test_every_output_is_there_once_where_locks_exclude_no_other_host(
    scratch: Path, seed: int, tell: Tell
) -> None:
    """sshfs, whose listings are also late: by 2 s here, and the lease is long enough for that."""
    with mounted.sshfs(scratch, lag_s=2) as hosts:
        tell(Storm(hosts, "sshfs", seed, lease_s=12.0).run().verify())


@pytest.mark.nightly
def test_a_lease_shorter_than_the_listings_are_late_costs_attempts_and_no_output(
    scratch: Path, seed: int, tell: Tell
) -> None:
    """sshfs by default is 20 s late; with a lease of 3 s, live workers are declared dead."""
    with mounted.sshfs(scratch) as hosts:
        tell(Storm(hosts, "sshfs, 20 s late", seed, claims=30, finish_within_s=300).run().verify())


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["glusterfs", "moosefs", "juicefs", "cephfs"])
def test_long_storms(name: str, scratch: Path, seed: int, tell: Tell) -> None:
    stand = partial(getattr(mounted, name), scratch)
    with stand() as hosts:
        storm = Storm(hosts, name, seed, claims=400, lasts_s=60.0, workers=3, kill_every_s=0.5)
        tell(storm.run().verify())
