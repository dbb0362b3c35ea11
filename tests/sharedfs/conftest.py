"""Fixtures for tests on shared file systems: scratch directories, an NFS network, a random seed."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.sharedfs.nfs import Lan, nfs


@pytest.fixture
def tell(report: Callable[[str, str], None]) -> Callable[[str], None]:
    """Print a line below the results, also when the test passes."""
    return lambda line: report("shared file systems", line)


@pytest.fixture
def seed() -> int:
    """A different seed in every run; it is shown when the test fails."""
    seed = random.SystemRandom().randrange(1_000_000)
    print(f"seed {seed}")
    return seed


def make_scratch() -> Path:
    """Make a directory with a short path, for Unix sockets."""
    return Path(tempfile.mkdtemp(prefix="fsq-", dir="/tmp"))


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A directory for one file system, removed with all it held."""
    need_root()
    path = make_scratch()
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def lan() -> Iterator[Lan]:
    """An NFS server and its two clients, shared by all tests that leave them working."""
    need_root()
    path = make_scratch()
    with nfs(path) as found:
        yield found
    shutil.rmtree(path, ignore_errors=True)


def need_root() -> None:
    """Skip where file systems cannot be mounted: without root or FUSE."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount file systems and make networks")
    if not Path("/dev/fuse").exists():
        pytest.skip("there is no /dev/fuse here")
