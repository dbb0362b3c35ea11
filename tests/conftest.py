"""Fixtures for all tests, and how tests are shared out to several processes."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.support.processes import Running, Start

ROOT = Path(__file__).resolve().parents[1]

# A busy machine may pause any example; pytest-timeout ends a test that hangs.
settings.register_profile("fsqueue", deadline=None)
settings.load_profile("fsqueue")


TOGETHER = ("slurm", "sharedfs")
"""Directories whose tests share daemons or kernels of their own: one process runs all of them."""
LONGEST_FIRST = (
    "slurm",
    "sharedfs",
    "stress",
    "sim",
    "crash",
    "test_rule_mutations.py",
    "embed",
)
"""The order in which directories are given to processes, so that all end at about the same time."""

CACHE = pytest.StashKey[tempfile.TemporaryDirectory[str]]()
REPORT = pytest.StashKey[dict[str, list[str]]]()
"""Lines to print below the results, by section."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --nightly, which also runs what takes too long for every change."""
    parser.addoption("--nightly", action="store_true", help="run the tests marked nightly, too")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give whole files to processes, and whole directories where `TOGETHER` says so."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            directory = nodeid.split("/")[1]
            return directory if directory in TOGETHER else nodeid.partition("::")[0]

    config.option.loadscopereorder = False
    return ByFile(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip nightly tests unless asked for; in several processes, begin with the longest tests."""
    for item in items:
        if item.get_closest_marker("nightly") and not config.getoption("--nightly"):
            item.add_marker(pytest.mark.skip(reason="nightly: scripts/test --nightly runs it"))
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=_place_in_line)


def _place_in_line(item: pytest.Item) -> int:
    directory = item.path.relative_to(ROOT / "tests").parts[0]
    return (*LONGEST_FIRST, directory).index(directory)


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Print a line below the results, also when the test passes: report(section, line)."""
    sections = request.config.stash[REPORT]
    return lambda section, line: sections.setdefault(section, []).append(line)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand the report of a pytest-xdist worker on to the process that prints it."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["report"] = session.config.stash[REPORT]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Add the report of a pytest-xdist worker that has ended."""
    for section, lines in getattr(node, "workeroutput", {}).get("report", {}).items():
        node.config.stash[REPORT].setdefault(section, []).extend(lines)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the report."""
    for section, lines in terminalreporter.config.stash[REPORT].items():
        terminalreporter.section(section)
        for line in lines:
            terminalreporter.write_line(line)


def pytest_configure(config: pytest.Config) -> None:
    """Clear fsqueue's and Slurm's variables from the environment; keep tests off the network.

    COLUMNS and LINES go as well: the readline that pytest loads leaves them to its processes, and
    they would hide the size of a terminal. A background job of a script ignores SIGINT, and so
    would the processes that tests start.
    """
    config.stash[REPORT] = {}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in list(os.environ):
        if name.startswith(("FSQUEUE_", "SLURM_")) or name in ("COLUMNS", "LINES"):
            del os.environ[name]
    # What workers remember is not the user's, and gone afterwards.
    config.stash[CACHE] = tempfile.TemporaryDirectory(prefix="fsqueue-cache-")
    os.environ["XDG_CACHE_HOME"] = config.stash[CACHE].name
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Any:
    """Let tests log any text: what UTF-8 cannot hold does not reach the process that reports."""
    return _encodable((yield))


def _encodable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_encodable(key): _encodable(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_encodable, value))
    return value


@pytest.fixture(scope="session")
def project() -> Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def proteins() -> list[Path]:
    """The demo's real sequences, largest file first; scripts/data/README.md describes them."""
    data = ROOT / "scripts" / "data"
    return sorted(data.glob("*.faa*"), key=lambda path: path.stat().st_size, reverse=True)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start `fsqueue WORD...` as a process, and kill it at the end of the test."""
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
    """Set the time zone to UTC."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()
