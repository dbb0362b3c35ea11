"""Kill each command at each of its changes; running it again puts everything right.

Each command lives once under a tracer, which knows every state that SIGKILL could leave behind (see
`support/disk_states.py`); the same command is then typed again in each of them, and a fresh worker
does what is left. Every command is in a table: of those that write, or of those that only read.
"""

from __future__ import annotations

import functools
import gc
import os
import re
import shutil
import signal
import stat
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from tests.support import embed_crash_cases, pool_crash_cases
from tests.support.crash_cases import (
    Reads,
    Writes,
    command_line,
    commands,
    nothing,
    unknown_leftovers,
    visible,
)
from tests.support.disk_states import (
    CrashPoint,
    Disk,
    command,
    disk_of,
    program,
    record_run,
    restore_disk,
    run_command,
)
from tests.support.ptrace import is_possible

WRITES = pool_crash_cases.WRITES | embed_crash_cases.WRITES
READS = pool_crash_cases.READS | embed_crash_cases.READS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not is_possible(), reason="no process can be traced here"),
]


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module", autouse=True)
def quickly() -> Iterator[None]:
    """Look up entry points once, and keep the garbage collector off memory shared with children."""
    looked_up = functools.cache(entry_points)
    gc.freeze()
    with pytest.MonkeyPatch.context() as patch:
        for module in ("importlib.metadata", "fsqueue.worker.settings"):
            patch.setattr(f"{module}.entry_points", looked_up)
        yield
    gc.unfreeze()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("PATH", f"{tmp_path}/site/bin{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "site").mkdir()
    return tmp_path / "site"


def test_every_command_is_in_a_table() -> None:
    tried = {name.partition(" (")[0] for name in (*WRITES, *READS)}
    run_command = {" ".join(words) for words in commands()}
    assert run_command - tried == set(), (
        "new commands: add to tests/support/*_cases.py what each is tried on; in WRITES, with what "
        "must hold when it was killed and typed again, or in READS, if it changes nothing"
    )
    assert tried - run_command == set(), "there are no such commands any more"


@pytest.mark.parametrize("case", READS.values(), ids=READS.keys())
def test_a_command_that_only_looks_changes_nothing(case: Reads, site: Path, shared: Path) -> None:
    case.prepare(site, shared)
    before, disk = facts(site), disk_of(site)
    life = record_run(command(command_line(case.words, site, shared)), site)
    assert life.status == case.status, life.said
    assert [each.change for each in life.instants] == []
    assert facts(site) == before and life.left == disk


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=name, marks=[pytest.mark.nightly] if case.nightly else [])
        for name, case in WRITES.items()
    ],
)
def test_a_command_that_is_killed_is_typed_again(
    case: Writes, site: Path, shared: Path, request: pytest.FixtureRequest
) -> None:
    case.prepare(site, shared)
    before = visible(disk_of(site), case.rough)
    life = record_run(
        (program if case.alone else command)(command_line(case.words, site, shared)), site
    )
    assert life.status == case.status, life.said
    after = visible(life.left, case.rough)
    assert life.instants, "it changes nothing: put it into READS"
    for each in life.instants:
        try:
            for name, data in visible(each.disk, case.rough).items():
                assert data in (before.get(name, data), after.get(name, b"")), (
                    f"{name} is not whole"
                )
            _type_again(
                case, each, site if case.stays else site.with_name(f"{each.number}"), shared, after
            )
        except AssertionError as error:
            raise AssertionError(f"killed at {each.number}: {each.change}") from error


def _type_again(case: Writes, each: CrashPoint, site: Path, shared: Path, after: Disk) -> None:
    words = case.words if case.again is None else case.again
    if not words and case.settled is nothing:
        return
    restore_disk(site, each.disk)
    if case.intact and (site / "pool" / "pool.json").exists():
        _look(site / "pool")
    if words:
        status, said = run_command(command_line(words, site, shared))
        assert status in case.again_status, said
        left = disk_of(site)
        assert visible(left, case.rough) == after and not unknown_leftovers(left, case.rough), (
            unknown_leftovers(left, ())
        )
    case.settled(site)
    shutil.rmtree(site)


def _look(pool: Path) -> None:
    """Assert that commands that only read show nothing wrong before anything is repaired."""
    for word in ("check", "status"):
        status, said = run_command([word, str(pool)])
        assert status in ((0, 3, 5) if word == "status" else (0,)), said


@pytest.mark.parametrize("name", ["retry", "recover", "plan command (into a pool at work)"])
def test_the_disk_predicted_from_one_run_is_what_real_kills_leave(
    site: Path, shared: Path, name: str
) -> None:
    """SIGKILL at every change, compared with the disk recorded in one undisturbed run."""
    case = WRITES[name]
    case.prepare(site, shared)
    begin = disk_of(site)
    action = command(command_line(case.words, site, shared))
    predicted = record_run(action, site).instants
    assert predicted
    for each in predicted:
        restore_disk(site, begin)
        killed = record_run(action, site, killed_at=each.number)
        assert killed.status == -signal.SIGKILL
        assert nameless(killed.left) == nameless(each.disk), each.change


def nameless(disk: Disk) -> list[str]:
    """Return the names on a disk without random parts and process ids."""
    return sorted(re.sub(r"[0-9]+-[0-9a-f]{6,12}|[0-9a-f]{12}", "#", name) for name in disk)


def facts(root: Path) -> dict[str, tuple[int, ...]]:
    """Return every file's stat, without its access time."""
    found = {}
    for path in (root, *root.rglob("*")):
        of = path.lstat()
        size = 0 if stat.S_ISDIR(of.st_mode) else of.st_size
        found[str(path)] = (
            of.st_ino,
            of.st_mode,
            of.st_nlink,
            of.st_mtime_ns,
            of.st_ctime_ns,
            size,
        )
    return found
