"""`fsqueue doctor` on file systems that break one promise each, and between two processes."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fsqueue.cli import cli, main
from fsqueue.errors import NotSupportedError
from fsqueue.maintenance.doctor.one_host import Finding, Level, quick, refuse_unfit, space
from fsqueue.maintenance.doctor.rendezvous import MEETING
from fsqueue.maintenance.doctor.two_hosts import recommend
from fsqueue.storage import atomic
from fsqueue.storage.mounts import mount_of
from tests.support.processes import Start, fsqueue

Break = Callable[[pytest.MonkeyPatch], None]


class Mount:
    """The `os` that atomic.py sees, with some calls replaced."""

    def __init__(self, **broken: Callable[..., Any]) -> None:
        self.__dict__.update(broken)

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


def breaks(**broken: Callable[..., Any]) -> Break:
    """Put a broken mount under atomic.py."""
    return lambda patch: patch.setattr(atomic, "os", Mount(**broken))


def link_refused(source: str, target: str) -> None:
    raise PermissionError(errno.EPERM, "Operation not permitted", source, None, target)


def link_replacing(source: str, target: str) -> None:
    if os.path.exists(target):
        os.unlink(target)
    os.link(source, target)


def rename_never_failing(source: str, target: str) -> None:
    if os.path.exists(source):
        os.rename(source, target)


def rename_in_two_places(source: str, target: str) -> None:
    os.link(source, target)


def rename_in_two_steps(source: str, target: str) -> None:
    """Look right to one process: only who comes in between sees a name that is going away."""
    os.link(source, target)
    time.sleep(0.005)
    if os.path.exists(source):
        try:
            os.unlink(source)
        except FileNotFoundError:
            pass  # RACE: the other winner's


def open_without_excl(path: str, flags: int, *rest: int, **named: Any) -> int:
    return os.open(path, flags & ~os.O_EXCL, *rest, **named)


def open_short_names(path: str, flags: int, *rest: int, **named: Any) -> int:
    if len(os.path.basename(path)) > 143:
        raise OSError(errno.ENAMETOOLONG, "File name too long", path)
    return os.open(path, flags, *rest, **named)


UNFIT = [
    pytest.param(breaks(link=link_refused), "link", "hard links do not work", id="no-links"),
    pytest.param(
        breaks(link=link_replacing), "link", "replaced an existing name", id="link-replaces"
    ),
    pytest.param(
        breaks(rename=rename_never_failing), "rename", "could have two owners", id="rename-of-gone"
    ),
    pytest.param(
        breaks(rename=rename_in_two_places), "rename", "could be in two states", id="rename-copies"
    ),
    pytest.param(
        breaks(open=open_without_excl), "create", "O_EXCL opened an existing file", id="no-excl"
    ),
    pytest.param(breaks(open=open_short_names), "names", "255 bytes are refused", id="short-names"),
]


def doctor(*words: str | Path) -> Result:
    return CliRunner().invoke(cli, ["doctor", *map(str, words)])


def bad_ones(found: list[Finding]) -> dict[str, str]:
    return {finding.name: finding.text for finding in found if finding.level is Level.BAD}


# ---- what breaks a promise ----


def test_nothing_is_bad_where_the_tests_run_and_nothing_is_left_behind(tmp_path: Path) -> None:
    assert bad_ones(list(quick(str(tmp_path)))) == {}
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("unfit", "name", "why"), UNFIT)
def test_a_broken_promise_is_found_by_its_name_and_nothing_is_left_behind(
    unfit: Break, name: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unfit(monkeypatch)
    assert why in bad_ones(list(quick(str(tmp_path))))[name]
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("unfit", "name", "why"), UNFIT)
def test_a_pool_is_refused_where_a_promise_is_broken(
    unfit: Break, name: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unfit(monkeypatch)
    with pytest.raises(NotSupportedError, match=why) as refused:
        refuse_unfit(str(tmp_path / "not" / "there" / "yet"))
    assert f"fsqueue doctor {tmp_path}" in str(refused.value)


def test_plan_refuses_with_status_4_in_one_line_and_makes_no_pool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "input").write_text("x")
    words = ["plan", "command", tmp_path / "pool", tmp_path / "input", "--gpus", "cpu"]
    monkeypatch.setattr(sys, "argv", ["fsqueue", *map(str, words), "--", "cat", "{input}"])
    breaks(link=link_refused)(monkeypatch)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"fsqueue: {tmp_path}/pool cannot hold a pool: hard links do not work")
    assert os.listdir(tmp_path) == ["input"]


@pytest.mark.slow
def test_doctor_says_what_is_bad_and_ends_with_status_4(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaks(link=link_refused)(monkeypatch)
    done = doctor(tmp_path)
    assert done.exit_code == 4
    assert "BAD   link               hard links do not work" in done.output
    assert done.output.splitlines()[-1].startswith("This directory is not suitable")


@pytest.mark.slow
def test_a_rename_that_is_not_exclusive_is_found_by_processes_that_contend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaks(rename=rename_in_two_steps)(monkeypatch)
    assert bad_ones(list(quick(str(tmp_path)))) == {}
    done = doctor(tmp_path, "--json")
    assert done.exit_code == 4
    (bad,) = [found for found in json.loads(done.output)["findings"] if found["level"] == "BAD"]
    assert bad["name"] == "contest"
    assert "by rename had several winners" in bad["text"]


def flock_for_nobody(fd: int, operation: int) -> None:
    """Grant every lock."""


def flock_missing(fd: int, operation: int) -> None:
    raise OSError(errno.ENOLCK, "No locks available")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flock", "says"),
    [(flock_for_nobody, "excludes no other process"), (flock_missing, "does not work here")],
)
def test_locks_that_do_nothing_are_a_note_and_no_reason_against_a_pool(
    flock: Callable[[int, int], None],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fcntl, "flock", flock)
    done = doctor(tmp_path)
    assert done.exit_code == 0, done.output
    assert f"note  flock              {says}" in done.output


# ---- what it prints ----


@pytest.mark.slow
def test_a_full_disk_is_refused_and_one_that_does_not_tell_its_size_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """MooseFS just after its start, and CephFS, which says that -1 inodes are free."""
    facts = {"f_frsize": 1 << 22, "f_files": 1, "f_favail": -1, "f_namemax": 255, "f_bavail": 0}
    for blocks, level in ((0, Level.NOTE), (10, Level.BAD)):
        told = SimpleNamespace(**facts, f_blocks=blocks)
        monkeypatch.setattr(os, "statvfs", lambda directory, told=told: told)
        assert space(mount_of("/")).level is level


def test_json_holds_every_finding_and_what_is_recommended(tmp_path: Path) -> None:
    done = fsqueue("doctor", tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    findings = said.pop("findings")
    assert said == {
        "directory": str(tmp_path),
        "fit": True,
        "other_host": None,
        "echo_s": None,
        "lease_s": 30.0,
        "steal_interval_s": 3.0,
    }
    assert all(set(found) == {"name", "level", "text"} for found in findings)
    names = "type space names link create rename contest flock fsync clock".split()
    assert {found["name"] for found in findings} == {*names, "open files"}


def test_a_directory_that_is_not_there_is_a_mistake_of_the_one_who_typed(tmp_path: Path) -> None:
    done = fsqueue("doctor", tmp_path / "nowhere")
    assert done.returncode == 2
    assert done.stderr.endswith("is not a directory. Name one that all workers can see.\n")


def test_the_later_a_change_is_seen_the_longer_the_lease_that_is_recommended() -> None:
    assert recommend(0.02) == (30.0, 3.0)
    lease_s, interval_s = recommend(42.0)
    assert lease_s / 4 >= 42.0
    assert interval_s == 5.0


def test_a_lease_outlasts_the_wait_for_a_client_that_has_fallen_silent() -> None:
    """60 s on CephFS, in which also the beats of the living stand still."""
    lease_s, _ = recommend(0.02, silence_s=60.0)
    assert lease_s - lease_s / 4 > 60.0


# ---- two of them ----


@pytest.mark.slow
def test_two_meet_in_the_directory_and_leave_nothing_there(tmp_path: Path, start: Start) -> None:
    place = tmp_path / "place"
    place.mkdir()
    both = [start("doctor", place, "--peer", "--json", "--wait", "50s") for _ in range(2)]
    assert [each.reap(deadline_s=90.0) for each in both] == [0, 0], [each.log for each in both]
    for each in both:
        said = json.loads(each.stdout)
        texts = {found["name"]: found["text"] for found in said["findings"]}
        assert said["other_host"]
        assert said["echo_s"] < 5
        assert "under the same kernel" in texts["same directory"]
        assert texts["hosts contest"].endswith("one winner each")
        assert texts["hosts flock"] == "excludes the other host"
    assert os.listdir(place) == []


@pytest.mark.slow
def test_what_the_other_host_writes_at_the_same_moment_is_in_no_way(tmp_path: Path) -> None:
    """Both look at the clock when they come, and did so by files of the same names."""
    meeting = tmp_path / MEETING
    meeting.mkdir()
    for number in range(5):
        (meeting / f"clock{number}").touch()
    done = fsqueue("doctor", tmp_path, "--peer", "--wait", "1s")
    assert "no other host came" in done.stderr
    assert sorted(os.listdir(meeting)) == [f"clock{number}" for number in range(5)]


@pytest.mark.slow
def test_who_waits_in_vain_says_what_to_type_on_the_other_host(tmp_path: Path) -> None:
    done = fsqueue("doctor", tmp_path, "--peer", "--wait", "1s")
    assert done.returncode == 1
    assert "no other host came" in done.stderr
    assert "fsqueue doctor DIR --peer" in done.stderr
    assert os.listdir(tmp_path) == []
