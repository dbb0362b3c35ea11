"""Fixtures for every test, and an environment that is the same on every machine."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.processes import Running, Start

ROOT = Path(__file__).resolve().parents[1]

# A shared machine may pause any example; a hung test is ended by pytest-timeout instead.
settings.register_profile("fsqueue", deadline=None)
settings.load_profile("fsqueue")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --nightly, which also runs what takes too long for every change."""
    parser.addoption("--nightly", action="store_true", help="run the tests marked nightly, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what is marked nightly, with a reason, unless it was asked for."""
    if config.getoption("--nightly"):
        return
    for item in items:
        if item.get_closest_marker("nightly"):
            item.add_marker(pytest.mark.skip(reason="nightly: scripts/test --nightly runs it"))


def pytest_configure() -> None:
    """Forget what the caller's shell or cluster job says of pools; keep tests off the network.

    A job in the background of a script ignores SIGINT, and its children would, too: not ours.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in list(os.environ):
        if name.startswith(("FSQUEUE_", "SLURM_")):
            del os.environ[name]
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


@pytest.fixture(scope="session")
def project() -> Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def proteins() -> list[Path]:
    """The demonstration's sequences, smallest file last; real, and described beside them."""
    data = ROOT / "scripts" / "data"
    return sorted(data.glob("*.faa*"), key=lambda path: path.stat().st_size, reverse=True)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start `fsqueue WORD...` as a process; whatever still runs at the end is killed."""
    started: list[Running] = []

    def begin(*words: str | bytes | Path, env: Mapping[str, str] | None = None) -> Running:
        log = tmp_path / f"process-{len(started)}.log"
        started.append(Running(words, log, env=env))
        return started[-1]

    yield begin
    for process in started:
        process.kill()


@pytest.fixture
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let it be the same time of day on every machine."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()
