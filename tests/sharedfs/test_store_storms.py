"""The embedding store on real shared file systems: writers on two hosts, killed while compactors
run; every key is there exactly as it was first given out, on either host."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.sharedfs import mounted
from tests.sharedfs.hosts import Host
from tests.sharedfs.nfs import Lan
from tests.support.store_storm import Storm

pytestmark = pytest.mark.slow
Tell = Callable[[str], None]


def run_storm(hosts: list[Host], name: str, tell: Tell, lasts_s: float = 8.0, **how: float) -> None:
    hosts[0].run("mkdir", "-p", share := f"{hosts[0].share}/store-{name}")
    for host in hosts:
        host.share = f"{host.share}/{Path(share).name}"
    tell(Storm(hosts, name, lasts_s=lasts_s, kill_every_s=0.4, **how).run().verify())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name",
    ["glusterfs"]
    + [pytest.param(name, marks=pytest.mark.nightly) for name in ("juicefs", "moosefs")],
)
def test_every_key_is_there_exactly_as_computed_on_a_cluster_file_system(
    name: str, scratch: Path, tell: Tell
) -> None:
    with getattr(mounted, name)(scratch) as hosts:
        run_storm(hosts, name, tell)


@pytest.mark.nightly
@pytest.mark.parametrize("version", ["3", "4.2"])
def test_every_key_is_there_exactly_as_computed_on_nfs(version: str, lan: Lan, tell: Tell) -> None:
    run_storm(lan.clients(version), f"nfs-{version}", tell, lasts_s=20.0)


@pytest.mark.nightly
@pytest.mark.parametrize("lag_s", [2, 20])
def test_every_key_is_there_exactly_as_computed_where_listings_are_late(
    lag_s: int, scratch: Path, tell: Tell
) -> None:
    with mounted.sshfs(scratch, lag_s=lag_s) as hosts:
        run_storm(hosts, f"sshfs-{lag_s}", tell, lasts_s=20.0, grace_s=2.0 * lag_s)


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["juicefs", "glusterfs", "moosefs"])
def test_long_storms_over_a_store(name: str, scratch: Path, tell: Tell) -> None:
    with getattr(mounted, name)(scratch) as hosts:
        run_storm(hosts, name, tell, lasts_s=90.0, numbers=6000)
