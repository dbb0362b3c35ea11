"""A fault in a pool, its inputs or its disk gets one clear message, and the rest goes on."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from fsqueue.cli import main
from fsqueue.errors import PoolError, UsageError
from fsqueue.pool.claims import Claim
from fsqueue.pool.layout import State
from fsqueue.pool.leases import proof_of_life
from fsqueue.pool.names import ClaimName
from fsqueue.pool.settings import PoolDirectory, open_pool
from tests.support.handlers import install_handler
from tests.support.mounts import read_only, tiny_disk
from tests.support.planning import counts, ids, make_inputs, names_in, plan_command
from tests.support.processes import fsqueue

pytestmark = pytest.mark.slow

QUICK = ("--steal-interval", "0.2")
CAT = ("cat", "{input}")
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")


@pytest.fixture
def pool(tmp_path: Path) -> PoolDirectory:
    """Three good claims in one spool."""
    return plan_command(tmp_path / "pool", make_inputs(tmp_path / "in", 3), CAT)


def only_message(run: subprocess.CompletedProcess[str]) -> str:
    """Return the one line that the command printed on stderr."""
    lines = run.stderr.splitlines()
    if "work" in run.args:
        lines = [line for line in lines if "spool cpu0 (its model is cpu)" not in line]
    assert len(lines) == 1, run.stderr
    assert lines[0].startswith("fsqueue: ")
    return lines[0]


def warnings(run: subprocess.CompletedProcess[str], about: str) -> list[str]:
    """Return the lines of a worker's log that contain a text."""
    assert "Traceback" not in run.stderr, run.stderr
    return [line for line in run.stderr.splitlines() if about in line]


def plant(
    pool: PoolDirectory, id: str = "planted", *, spool: str = "cpu0", spool_inside: str = "cpu0"
) -> Path:
    """Write a claim that is in no plan, with a program that fails; return its path."""
    name = ClaimName(id, "command", 999)
    options = {"argv": ["false", "{input}"], "grace": 1.0}
    facts = os.stat("/dev/null")
    payload = {"input": "/dev/null", "facts": {"bytes": 0, "mtime_ns": facts.st_mtime_ns}}
    path = Path(pool.waiting(spool, name))
    path.write_bytes(Claim("command", spool_inside, options, payload, {}).encode(name))
    return path


# ---- pool.json ----


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "\0\xff" * 50,
        "[" * 100_000,
        "{}",
        '{"format": 2}',
        '{"format": 1, "id": "x", "lease_s": NaN, "attempts_max": 3}',
        '{"format": 1, "id": "x", "lease_s": 0, "attempts_max": 3}',
        '{"format": 1, "id": "x", "lease_s": 1' + "0" * 400 + ', "attempts_max": 3}',
        '{"format": 1, "id": "x", "lease_s": 30, "attempts_max": 0}',
        '{"format": 1, "id": "x", "lease_s": 30, "attempts_max": "3"}',
        '{"format": 1, "lease_s": 30, "attempts_max": 3}',
    ],
    ids=lambda text: repr(text[:60]),
)
def test_a_malformed_pool_json_is_refused_by_its_path(pool: PoolDirectory, text: str) -> None:
    Path(pool.settings).write_bytes(text.encode("latin-1"))
    with pytest.raises(PoolError, match=f"^{pool.settings} ") as caught:
        open_pool(pool.root)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("what", ["directory", "fifo", "symlink"])
def test_a_pool_json_other_than_a_file_is_refused(
    pool: PoolDirectory, tmp_path: Path, what: str
) -> None:
    settings = Path(pool.settings)
    settings.rename(tmp_path / "elsewhere")
    make_odd(settings, what, tmp_path / "elsewhere")
    with pytest.raises(PoolError, match=f"^{pool.settings} is "):
        open_pool(pool.root)


@pytest.mark.parametrize("command", ["work", "run", "status", "check", "plan"])
def test_every_command_reports_a_malformed_pool_json_in_one_line(
    pool: PoolDirectory, command: str
) -> None:
    Path(pool.settings).write_text('{"format": 1, "id"')
    tail = [f"{pool.root}/../in/in000", "--", "cat", "{input}"] if command == "plan" else []
    words = ["plan", "command"] if command == "plan" else [command]
    run = fsqueue(*words, pool.root, *tail)
    assert run.returncode == 1
    assert f"{pool.settings} is not JSON" in only_message(run)
    assert "Restore" in only_message(run)


# ---- claims ----


@pytest.mark.parametrize("keep", [0.0, 0.5])
def test_a_truncated_claim_fails_by_name_and_the_others_are_done(
    pool: PoolDirectory, keep: float
) -> None:
    name = min(names_in(pool, State.WAITING), key=lambda name: name.id)
    path = Path(pool.waiting("cpu0", name))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    check = fsqueue("check", pool.root)
    assert check.returncode == 1
    assert [line for line in check.stdout.splitlines() if str(path) in line]

    run = fsqueue("work", pool.root, *QUICK)

    assert run.returncode == 3
    (message,) = warnings(run, name.id)
    assert "truncated" in message
    assert counts(pool) == {"done": 2, "failed": 1}
    record = json.loads(Path(pool.error(name.id, 0)).read_text())
    assert "Restore or remove it" in record["error"]


NOT_PLANNED = 1
"""The exit status where a claim is in the pool that no plan holds (R30)."""


@pytest.mark.parametrize("what", ["directory", "fifo", "symlink", "socket"])
def test_a_special_file_named_like_a_claim_fails_and_the_others_are_done(
    pool: PoolDirectory, tmp_path: Path, what: str
) -> None:
    planted = plant(pool)
    elsewhere = tmp_path / "elsewhere"
    planted.rename(elsewhere)
    make_odd(planted, what, elsewhere)
    run = fsqueue("work", pool.root, *QUICK)
    assert run.returncode == NOT_PLANNED
    (message,) = warnings(run, "planted")
    assert {"symlink": "a symbolic link", "socket": "a socket"}.get(
        what, "not a regular"
    ) in message
    assert "Remove it" in message
    assert counts(pool) == {"done": 3, "failed": 1}


def make_odd(path: Path, what: str, target: Path) -> None:
    """Make a special file at `path`."""
    if what == "directory":
        path.mkdir()
    elif what == "fifo":
        os.mkfifo(path)
    elif what == "symlink":
        path.symlink_to(target)
    else:
        here = os.open(path.parent, os.O_RDONLY)
        with socket.socket(socket.AF_UNIX) as server:  # its own path may be too long to bind to
            server.bind(f"/proc/self/fd/{here}/{path.name}")
        os.close(here)


def test_other_names_are_left_alone_and_check_reports_each_in_a_line(
    pool: PoolDirectory,
) -> None:
    names = [
        "in\n000.command.c1.a0.r0",
        "in000.command.c1.a0.r0\n",
        "in000.command.c1.a0.r0@",
        "in000.command.c١.a0.r0",
        "-rf.command.c1.a0.r0",
        "x" * 230 + ".command.c1.a0.r0",
        "\x1b[2Jin000.command.c1.a0.r0",
        "README",
    ]
    for name in names:
        assert ClaimName.parse(name) is None
        Path(pool.spool("cpu0"), name).write_text("{}")
    assert fsqueue("work", pool.root).returncode == 0
    assert counts(pool) == {"done": 3}
    assert sorted(os.listdir(pool.spool("cpu0"))) == sorted(names)
    check = fsqueue("check", pool.root)
    assert check.returncode == 1
    *lines, verdict, _advice = check.stdout.splitlines()
    assert len(lines) == len(names)
    assert all("is not a claim's name; remove it" in line and line.isprintable() for line in lines)
    assert f"{len(names)} problems" in verdict


@pytest.mark.parametrize("name", ["../../../etc/passwd.command.c1.a0.r0", "x" * 300])
def test_a_plan_with_an_invalid_claim_name_is_refused(pool: PoolDirectory, name: str) -> None:
    assert ClaimName.parse(name) is None
    plan_file = Path(pool.plan(1))
    first = str(min(names_in(pool, State.WAITING), key=str))
    assert first in plan_file.read_text()
    plan_file.write_text(plan_file.read_text().replace(first, name))
    check = fsqueue("check", pool.root)
    assert check.returncode == 1
    assert [line for line in check.stdout.splitlines() if "which is not a claim" in line]
    work = fsqueue("work", pool.root)
    assert work.returncode == 1, "what was planned is not known, so nothing can be said to be all"
    assert "which is not a claim. Restore it." in work.stderr.splitlines()[-1]
    assert counts(pool) == {"done": 3}


def test_a_claim_with_another_id_than_its_name_fails(pool: PoolDirectory) -> None:
    path = plant(pool)
    path.rename(path.with_name(path.name.replace("planted", "renamed")))
    run = fsqueue("work", pool.root, *QUICK)
    assert run.returncode == NOT_PLANNED
    (message,) = warnings(run, "renamed")
    assert "does not hold the claim that its name says" in message
    assert counts(pool) == {"done": 3, "failed": 1}


@pytest.mark.parametrize("spool", ["ghost", "../../../tmp"])
def test_a_claim_of_a_missing_spool_harms_no_other(pool: PoolDirectory, spool: str) -> None:
    plant(pool, spool_inside=spool)
    run = fsqueue("work", pool.root, *QUICK)
    assert run.returncode == NOT_PLANNED, run.stderr
    assert len(warnings(run, "planted failed")) == 3
    assert counts(pool) == {"done": 3, "failed": 1}


# ---- spools ----


@pytest.fixture
def two_spools(tmp_path: Path) -> PoolDirectory:
    """Two claims in cpu0, and two in cpu1, which has a fault."""
    inputs = make_inputs(tmp_path / "in", 4)
    return plan_command(tmp_path / "pool", inputs, CAT, spools=("cpu0", "cpu1"))


def replace_by_symlink(pool: PoolDirectory) -> None:
    outside = Path(pool.root).parent / "outside"
    Path(pool.spool("cpu1")).rename(outside)
    Path(pool.spool("cpu1")).symlink_to(outside)


def give_away(pool: PoolDirectory) -> None:
    os.chown(pool.spool("cpu1"), 12345, 12345)


def replace_by_file(pool: PoolDirectory) -> None:
    Path(pool.spool("cpu1")).rename(Path(pool.root).parent / "outside")
    Path(pool.spool("cpu1")).write_text("")


@pytest.mark.parametrize(
    "harm", [replace_by_symlink, replace_by_file, pytest.param(give_away, marks=ROOT_ONLY)]
)
def test_another_users_spool_is_left_alone_and_the_others_are_worked(
    two_spools: PoolDirectory, harm: Callable[[PoolDirectory], None]
) -> None:
    harm(two_spools)
    run = fsqueue("work", two_spools.root, "--spool", "cpu0", *QUICK)
    assert run.returncode == 5
    (message,) = warnings(run, two_spools.spool("cpu1"))
    assert "is not a directory" in message or "belongs to user 12345" in message
    assert len(ids(two_spools, State.DONE)) == 2
    assert os.listdir(two_spools.directory("running")) == []
    check = fsqueue("check", two_spools.root)
    assert check.returncode == 1
    assert [line for line in check.stdout.splitlines() if line.startswith(message[9:40])]


@pytest.mark.parametrize(
    "harm", [replace_by_symlink, replace_by_file, pytest.param(give_away, marks=ROOT_ONLY)]
)
def test_nothing_is_planned_into_another_users_spool(
    two_spools: PoolDirectory, tmp_path: Path, harm: Callable[[PoolDirectory], None]
) -> None:
    harm(two_spools)
    more = make_inputs(tmp_path / "more", 4)
    run = fsqueue("plan", "command", two_spools.root, *more, "--", *CAT)
    assert run.returncode == 1
    assert two_spools.spool("cpu1") in only_message(run)
    assert len(os.listdir(two_spools.spool("cpu0"))) == 2
    assert os.listdir(two_spools.directory("plans")) == ["000001.json"]


# ---- what others write for eyes ----


NONSENSE = (
    "",
    "[" * 100_000,
    '{"rates": {"command": 1' + "0" * 400 + '}, "weight": 1' + "0" * 400 + "}",
    '{"rates": {"command": NaN}, "weight": -1, "current": {"cost": "much"}}',
    '{"rates": [], "weight": 0, "spool": 7, "current": {"done": -5, "total": -1}}',
    '{"rates": {"command": -1e308}, "weight": 1e308, "started": 1e308, "state": "\\u001b[2J"}',
)


def test_nonsense_in_status_files_hinders_neither_thieves_nor_eyes(
    pool: PoolDirectory, tmp_path: Path
) -> None:
    """I8: workers of cpu0 write invalid statuses."""
    for number, text in enumerate(NONSENSE):
        liar = f"liar-{number}-abcdef"
        lease = Path(pool.directory("workers"), f"{liar}.b000000")
        lease.write_text(json.dumps(proof_of_life()))
        facts = text.replace("{", f'{{"worker_id": "{liar}", "spool": "cpu0", ', 1)
        Path(pool.status(liar)).write_text(facts)
        Path(pool.events(liar)).write_text(f"{facts}\n\0\0\n{facts}")
    plan_command(tmp_path / "pool", make_inputs(tmp_path / "more", 1), CAT, spools=["cpu1"])
    run = fsqueue("work", pool.root, "--spool", "cpu1", *QUICK)
    assert run.returncode == 0, run.stderr
    assert counts(pool) == {"done": 4}
    for command in (["status"], ["workers"], ["watch", "--once"]):
        look = fsqueue(command[0], pool.root, *command[1:])
        assert look.returncode == 0, look.stderr
        assert "\x1b[2J" not in look.stdout


# ---- disks ----


def test_a_pool_that_cannot_be_written_is_refused_in_one_line(
    pool: PoolDirectory, tmp_path: Path
) -> None:
    with read_only(Path(pool.root)) as path:
        for command in (["work"], ["drain"], ["plan", "command"]):
            tail = [tmp_path / "in", "--", "echo", "{input}"] if command[0] == "plan" else []
            run = fsqueue(*command, path, *tail)
            assert run.returncode == 1, run.stderr
            assert "Read-only file system. " in only_message(run)
            assert "cannot be written" in only_message(run)
        assert fsqueue("status", path).returncode == 5
        assert fsqueue("check", path).returncode == 0
    assert counts(pool) == {"waiting": 3}
    assert fsqueue("work", pool.root).returncode == 0


def fill_up(disk: Path) -> Path:
    """Fill the disk; return the file to remove again."""
    ballast = disk / "ballast"
    with open(ballast, "wb", buffering=0) as file:
        try:
            while file.write(b"\0" * 4096):
                pass
        except OSError:
            return ballast
    raise AssertionError("the disk has no end")


def test_a_worker_does_not_begin_on_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    with tiny_disk(tmp_path / "disk", 1024) as disk:
        pool = plan_command(disk / "pool", make_inputs(tmp_path / "in", 3), CAT)
        ballast = fill_up(disk)
        run = fsqueue("work", pool.root)
        assert run.returncode == 1
        assert "No space left on device" in only_message(run)
        assert "Free some space" in only_message(run)
        assert counts(pool) == {"waiting": 3}

        more = make_inputs(tmp_path / "more", 2)
        planned = fsqueue("plan", "command", pool.root, *more, "--", *CAT)
        assert planned.returncode == 1
        assert "No space left on device" in only_message(planned)

        ballast.unlink()
        assert fsqueue("work", pool.root).returncode == 0
        assert fsqueue("check", pool.root).returncode == 0
        assert counts(pool) == {"done": 3}


def test_a_full_disk_fails_only_the_program_that_met_it(tmp_path: Path) -> None:
    """The largest claim's output does not fit; it fails with its program's error."""
    (tmp_path / "disk").mkdir()
    inputs = make_inputs(tmp_path / "in", 4)
    script = "case $1 in *000) head -c 4m /dev/zero;; *) echo fine;; esac"
    with tiny_disk(tmp_path / "disk", 1024) as disk:
        pool = plan_command(disk / "pool", inputs, ("sh", "-c", script, "sh", "{input}"))
        run = fsqueue("work", pool.root, *QUICK)
        assert run.returncode == 3, run.stderr
        assert "Traceback" not in run.stderr
        assert counts(pool) == {"done": 3, "failed": 1}
        (id,) = ids(pool, State.FAILED)
        assert "No space left" in json.loads(Path(pool.error(id, 2)).read_text())["detail"]
        assert fsqueue("check", pool.root).returncode == 0


def test_a_disk_that_fills_up_under_a_claim_stops_the_worker_and_loses_nothing(
    tmp_path: Path,
) -> None:
    """Not even the error can be recorded: the claim goes back as it was."""
    (tmp_path / "disk").mkdir()
    inputs = make_inputs(tmp_path / "in", 4)
    with tiny_disk(tmp_path / "disk", 1024) as disk:
        script = f"cat /dev/zero > {disk}/ballast; exit 1"
        pool = plan_command(disk / "pool", inputs, ("sh", "-c", script, "sh", "{input}"))
        run = fsqueue("work", pool.root, *QUICK)
        assert run.returncode == 1
        assert "No space left on device" in run.stderr
        assert "Traceback" not in run.stderr
        assert {name.attempt for name in names_in(pool, State.WAITING)} == {0}
        assert counts(pool) == {"waiting": 4}
        (disk / "ballast").unlink()
        assert fsqueue("check", pool.root).returncode == 0


def test_a_handler_that_meets_a_full_disk_has_its_claim_put_back(tmp_path: Path) -> None:
    source = """
from fsqueue import Handler

class Made(Handler):
    def run(self, work):
        with open(work.output, "wb") as file:
            file.write(bytes(4 << 20))
"""
    env = install_handler(tmp_path / "site", "large", source)
    (tmp_path / "disk").mkdir()
    with tiny_disk(tmp_path / "disk", 1024) as disk:
        inputs = make_inputs(tmp_path / "in", 4)
        planned = fsqueue("plan", "large", disk / "pool", *inputs, "--gpus", "cpu", env=env)
        assert planned.returncode == 0, planned.stderr
        run = fsqueue("work", disk / "pool", *QUICK, env=env)
        assert run.returncode == 1
        (message,) = warnings(run, "No space left on device")
        assert "The claim was put back; free some space" in message
        pool = open_pool(str(disk / "pool"))
        assert counts(pool) == {"waiting": 4}
        assert {name.attempt for name in names_in(pool, State.WAITING)} == {0}


# ---- inputs and programs ----


@pytest.mark.parametrize("name", ["missing", "new\nline", "\x1b[2Jclear"], ids=repr)
def test_a_missing_input_is_reported_in_one_line_and_the_others_are_planned(
    tmp_path: Path, name: str
) -> None:
    inputs = make_inputs(tmp_path / "in", 2)
    words = ["plan", "command", tmp_path / "pool", inputs[0], tmp_path / name, inputs[1]]
    run = fsqueue(*words, "--gpus", "cpu", "--", *CAT)
    assert run.returncode == 1
    assert "No such file or directory. Check the path." in only_message(run)
    assert only_message(run).isprintable()
    assert "2 claims planned" in run.stdout
    assert fsqueue("work", tmp_path / "pool").returncode == 0


def test_an_input_removed_since_it_was_planned_fails_its_claim(
    pool: PoolDirectory, tmp_path: Path
) -> None:
    (tmp_path / "in" / "in001").unlink()
    run = fsqueue("work", pool.root, *QUICK)
    assert run.returncode == 3
    assert len(warnings(run, "in001 cannot be read")) or len(warnings(run, "its input cannot be"))
    assert counts(pool) == {"done": 2, "failed": 1}


def test_a_name_made_to_deceive_a_terminal_is_one_harmless_line_in_the_log(tmp_path: Path) -> None:
    path = tmp_path / "in\n00:00:00 all is well\x1b[2J"
    path.write_text("x")
    pool = plan_command(tmp_path / "pool", [path], CAT)
    path.unlink()
    run = fsqueue("work", pool.root, *QUICK)
    assert run.returncode == 3
    assert all(line.isprintable() for line in run.stderr.splitlines())
    assert not [line for line in run.stderr.splitlines() if line.startswith("00:00:00 all")]


def test_an_input_changed_since_it_was_planned_fails_its_claim_once(
    pool: PoolDirectory, tmp_path: Path
) -> None:
    (tmp_path / "in" / "in001").write_text("something else altogether")
    run = fsqueue("work", pool.root, *QUICK)
    assert run.returncode == 3
    (message,) = warnings(run, "in001")
    assert "changed since it was planned" in message
    assert "plan it again" in message
    assert counts(pool) == {"done": 2, "failed": 1}
    again = fsqueue("plan", "command", pool.root, tmp_path / "in" / "in001", "--", *CAT)
    assert again.returncode == 0, again.stderr
    assert fsqueue("work", pool.root, *QUICK).returncode == 0, "the new version supersedes the old"
    assert counts(pool) == {"done": 3, "failed": 1}


def test_a_program_that_does_not_exist_is_refused_when_planned(tmp_path: Path) -> None:
    inputs = make_inputs(tmp_path / "in", 1)
    run = fsqueue("plan", "command", tmp_path / "pool", *inputs, "--", "no-such-program", "{input}")
    assert run.returncode == UsageError.exit_status
    assert "'no-such-program' is not on PATH here" in only_message(run)
    assert not (tmp_path / "pool").exists()


def test_a_program_removed_since_it_was_planned_fails_its_claims(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    argv = (str(program), "{input}")
    pool = plan_command(tmp_path / "pool", make_inputs(tmp_path / "in", 1), argv)
    program.unlink()
    run = fsqueue("work", pool.root, *QUICK)
    assert run.returncode == 3
    assert len(warnings(run, f"{program} cannot be started: No such file or directory")) == 3


def test_standard_input_cannot_be_planned(tmp_path: Path) -> None:
    run = fsqueue("plan", "command", tmp_path / "pool", "-", "--", *CAT)
    assert run.returncode == 2
    assert "'-' (standard input) cannot be planned" in only_message(run)
    assert "Save it where the workers can see it" in only_message(run)
    assert not (tmp_path / "pool").exists()


def test_a_mount_that_shuts_this_host_out_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error that an evicted client of CephFS gets, which Python calls a BrokenPipeError."""

    def shut_out(**_: object) -> None:
        raise OSError(errno.ESHUTDOWN, os.strerror(errno.ESHUTDOWN), "/pool/workers")

    monkeypatch.setattr("fsqueue.cli.cli", shut_out)
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 1
    said = capsys.readouterr().err
    assert "/pool/workers" in said and "disconnected this host" in said and "Mount it again" in said
