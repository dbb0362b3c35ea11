"""Which users may give work to which: other users really attack here. See SECURITY.md.

`private` is alice's own pool, `shared` one that she made for her group, which bob is in.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fsqueue.errors import PoolError
from fsqueue.pool.claims import Claim
from fsqueue.pool.names import ClaimName
from fsqueue.pool.settings import PoolDirectory
from fsqueue.storage import directories, permissions
from tests.support.handlers import install_handler
from tests.support.planning import make_inputs
from tests.support.processes import fsqueue
from tests.support.users import IDS, LAB, USERS_NEEDED, Users, give

pytestmark = [pytest.mark.slow, USERS_NEEDED]

WORK = ("work", "--steal-interval", "0.2", "--spool", "cpu0")
GROUP = "--trust-group"
WORDS = """
from fsqueue import Handler

class Made(Handler):
    suffix = ".txt"

    def run(self, work):
        work.output.write_text(work.input.read_text().upper())
"""


@pytest.fixture
def users(tmp_path: Path) -> Users:
    return Users(tmp_path / "etc")


@pytest.fixture
def words(tmp_path: Path) -> dict[str, str]:
    """The environment in which a handler `words` is installed, which runs no program."""
    return install_handler(tmp_path / "site", "words", WORDS)


@pytest.fixture
def inputs(tmp_path: Path) -> list[Path]:
    return make_inputs(tmp_path / "in", 3)


@pytest.fixture
def private(tmp_path: Path, users: Users, inputs: list[Path]) -> str:
    """Alice's own pool of three claims that run cat."""
    home = give(make(tmp_path / "alice"), "alice")
    return planned(users, home / "pool", inputs)


@pytest.fixture
def shared(tmp_path: Path, users: Users, inputs: list[Path]) -> str:
    """Alice's pool for her group, of three claims that run cat; she keeps a tight umask."""
    lab = give(make(tmp_path / "lab"), "alice", group=LAB, mode=0o2770)
    return planned(users, lab / "pool", inputs, GROUP, umask=0o077)


def make(path: Path) -> Path:
    path.mkdir()
    return path


def planned(users: Users, root: Path, inputs: list[Path], *how: str, umask: int = 0o022) -> str:
    argv = ("plan", "command", root, *inputs, "--gpus", "cpu", *how, "--", "cat", "{input}")
    done = users.fsqueue("alice", *argv, umask=umask)
    assert done.returncode == 0, done.stderr
    return str(root)


def seen(root: str) -> PoolDirectory:
    """Return a pool without opening it: the test itself is root, and trusts no other user."""
    facts = json.loads(Path(root, "pool.json").read_text())
    return PoolDirectory(root, facts["id"], facts["lease_s"], facts["attempts_max"])


def waiting(root: str) -> list[str]:
    return sorted(n for n in os.listdir(f"{root}/spools/cpu0") if not n.startswith("."))


def done(root: str) -> list[str]:
    return sorted(os.listdir(f"{root}/done"))


def message(run: subprocess.CompletedProcess[str]) -> str:
    """Return the one line of a command's error message."""
    assert run.returncode == 1, (run.returncode, run.stdout, run.stderr)
    (line,) = run.stderr.splitlines()
    assert line.startswith("fsqueue: ")
    return line


def forged(marker: Path, id: str = "forged", **changes: Any) -> bytes:
    """Return the bytes of a claim that would make `marker`."""
    options = {"argv": ["touch", str(marker), "{input}"], "grace": 1.0}
    facts = os.stat("/dev/null")
    payload = {"input": "/dev/null", "facts": {"bytes": 0, "mtime_ns": facts.st_mtime_ns}}
    claim = json.loads(
        Claim("command", "cpu0", options, payload, {}).encode(ClaimName(id, "command", 9))
    )
    return json.dumps(claim | changes).encode()


# ---- whose pool it is ----


def test_another_users_pool_is_refused_and_not_touched(users: Users, private: str) -> None:
    before = waiting(private)
    for command in ("work", "status", "check"):
        line = message(users.fsqueue("bob", command, private))
        assert f"belongs to user {IDS['alice']}, not to you ({IDS['bob']})" in line
        assert "--trust-group" in line
    assert waiting(private) == before


def test_not_even_root_works_a_users_pool(private: str) -> None:
    assert f"belongs to user {IDS['alice']}, not to you (0)" in message(fsqueue("work", private))
    assert len(waiting(private)) == 3


def test_what_nfs_cannot_map_is_refused_with_the_reason(users: Users, private: str) -> None:
    os.chown(private, permissions.NOBODY_UID, permissions.NOBODY_UID)
    line = message(users.fsqueue("alice", "work", private))
    assert "that is the user nobody" in line and "ls -ln" in line


@pytest.mark.parametrize(
    ("place", "mode", "writers"),
    [
        (".", 0o777, "everybody"),
        (".", 0o775, "its group"),
        ("outputs", 0o777, "everybody"),
        ("control", 0o775, "its group"),
    ],
)
def test_a_pool_that_others_may_write_to_is_refused(
    users: Users, private: str, place: str, mode: int, writers: str
) -> None:
    os.chmod(Path(private, place), mode)
    line = message(users.fsqueue("alice", "work", private))
    assert f"can be written by {writers}" in line and "chmod -R go-w" in line
    assert len(waiting(private)) == 3


def test_a_spool_that_others_may_write_to_is_left_alone(users: Users, private: str) -> None:
    os.chmod(Path(private, "spools", "cpu0"), 0o757)
    run = users.fsqueue("alice", *WORK, private)
    assert run.returncode == 5
    assert "can be written by everybody" in run.stderr
    assert len(waiting(private)) == 3


def test_a_directory_that_others_may_write_to_does_not_become_a_pool(
    users: Users, tmp_path: Path, inputs: list[Path]
) -> None:
    root = give(make(tmp_path / "open"), "alice", mode=0o777)
    argv = ("plan", "command", root, *inputs, "--gpus", "cpu", "--", "cat", "{input}")
    assert "can be written by everybody" in message(users.fsqueue("alice", *argv))
    assert os.listdir(root) == []


@pytest.mark.parametrize("mode", [0o666, 0o664])
def test_a_claim_that_others_may_write_to_is_left_alone_by_name(
    users: Users, private: str, mode: int
) -> None:
    name = waiting(private)[0]
    os.chmod(Path(private, "spools", "cpu0", name), mode)
    run = users.fsqueue("alice", *WORK, private)
    assert run.returncode == 5
    assert name.split(".")[0] in run.stderr and "can be written by" in run.stderr
    assert len(done(private)) == 2


def test_a_claim_that_another_user_planted_is_left_alone_by_name_and_not_run(
    users: Users, private: str, tmp_path: Path
) -> None:
    planted = Path(private, "spools", "cpu0", "forged.command.c9.a0.r0")
    planted.write_bytes(forged(tmp_path / "alice" / "marker"))
    give(planted, "mallory")
    run = users.fsqueue("alice", *WORK, private)
    assert run.returncode == 5
    assert f"belongs to user {IDS['mallory']}" in run.stderr
    assert not (tmp_path / "alice" / "marker").exists()
    assert len(done(private)) == 3


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o077])
def test_nothing_in_a_private_pool_is_writable_by_others(
    users: Users, tmp_path: Path, inputs: list[Path], words: dict[str, str], umask: int
) -> None:
    root = give(make(tmp_path / "alice"), "alice") / "pool"
    plan = ("plan", "words", root, *inputs, "--gpus", "cpu")
    assert users.fsqueue("alice", *plan, umask=umask, env=words).returncode == 0
    assert users.fsqueue("alice", *WORK, root, umask=umask, env=words).returncode == 0
    for path in (root, *root.rglob("*")):
        mode = stat.S_IMODE(path.lstat().st_mode)
        assert not mode & 0o022, f"{path} has mode {mode:o}"
    assert len(list((root / "outputs").glob("*.txt"))) == 3


# ---- a group's pool ----


def test_a_groups_pool_is_made_for_the_group_whatever_the_umask(
    users: Users, shared: str, words: dict[str, str], inputs: list[Path]
) -> None:
    plan = ("plan", "words", shared, *inputs, GROUP)
    assert users.fsqueue("alice", *plan, umask=0o077, env=words).returncode == 0
    run = users.fsqueue("bob", *WORK, GROUP, shared, umask=0o077, env=words)
    assert run.returncode == 5, run.stderr
    found = {"personal": 0, "locks": 0}
    for path in (Path(shared), *Path(shared).rglob("*")):
        facts = path.lstat()
        mode = stat.S_IMODE(facts.st_mode)
        assert facts.st_gid == LAB, path
        if path.is_dir():
            kept = path.name in ("pool", "spools", "outputs")
            assert mode == (0o3770 if kept else 0o2770), f"{path} has mode {mode:o}"
        elif path.suffix == ".lock":
            found["locks"] += 1
            assert mode == 0o660, f"{path} has mode {mode:o}"
        elif ".command" in path.name:
            found["personal"] += 1
            assert mode == 0o600, f"{path} has mode {mode:o}"
        else:
            assert mode == 0o640, f"{path} has mode {mode:o}"
    assert found["personal"] == 3


def test_members_work_each_others_claims_with_trust_group(
    users: Users, shared: str, words: dict[str, str], inputs: list[Path]
) -> None:
    """Planned by alice, worked by bob, read by both."""
    assert (
        users.fsqueue("alice", "plan", "words", shared, *inputs, GROUP, env=words).returncode == 0
    )
    trusting = words | {"FSQUEUE_TRUST_GROUP": "1"}
    run = users.fsqueue("bob", *WORK, shared, env=trusting)
    assert run.returncode == 5, run.stderr  # alice's own remain
    assert "claims wait that this worker cannot or may not take" in run.stderr
    outputs = sorted(Path(shared, "outputs").glob("*.txt"))
    assert [path.stat().st_uid for path in outputs] == [IDS["bob"]] * 3
    assert users.fsqueue("alice", *WORK, GROUP, shared, env=words).returncode == 0
    assert len(done(shared)) == 6
    for user in ("alice", "bob"):
        assert users.fsqueue(user, "check", GROUP, shared).returncode == 0
        assert users.fsqueue(user, "status", GROUP, shared).returncode == 0


def test_without_trust_group_a_member_refuses_the_groups_pool(users: Users, shared: str) -> None:
    for user in ("alice", "bob"):
        line = message(users.fsqueue(user, "work", shared))
        assert "--trust-group" in line
    assert len(waiting(shared)) == 3


def test_a_non_member_can_do_nothing_in_a_groups_pool(users: Users, shared: str) -> None:
    before = waiting(shared)
    run = users.fsqueue("mallory", *WORK, GROUP, shared)
    assert run.returncode == 1
    assert "This pool cannot be written from here" in run.stderr.splitlines()[-1]
    assert waiting(shared) == before


def test_a_group_that_everybody_may_write_beside_is_not_trusted(users: Users, shared: str) -> None:
    os.chmod(shared, 0o2777)
    assert "can be written by everybody" in message(users.fsqueue("bob", *WORK, GROUP, shared))


def test_files_of_a_former_member_are_refused(users: Users, shared: str, tmp_path: Path) -> None:
    planted = Path(shared, "spools", "cpu0", "forged.command.c9.a0.r0")
    planted.write_bytes(forged(tmp_path / "lab" / "marker"))
    give(planted, "mallory", group=LAB)
    run = users.fsqueue("alice", *WORK, GROUP, shared)
    assert run.returncode == 5
    assert "its owner is not a member of a trusted group" in run.stderr
    assert not (tmp_path / "lab" / "marker").exists()


def test_a_dead_members_claims_are_put_back_by_another(
    users: Users, shared: str, words: dict[str, str], inputs: list[Path]
) -> None:
    assert (
        users.fsqueue("alice", "plan", "words", shared, *inputs, GROUP, env=words).returncode == 0
    )
    take = "p, n = sys.argv[1:]; os.rename(f'{p}/spools/cpu0/{n}', f'{p}/running/{n}@gone-1-a')"
    for kind in (".words", ".command"):  # bob cannot even read the latter
        name = next(n for n in waiting(shared) if kind in n)
        assert users.python("alice", take, shared, name).returncode == 0
    lease = "open(sys.argv[1] + '/workers/gone-1-a.left', 'w')"
    assert users.python("alice", lease, shared).returncode == 0
    run = users.fsqueue("bob", *WORK, GROUP, shared, env=words)
    assert run.returncode == 5, run.stderr
    assert len([n for n in done(shared) if ".words" in n]) == 3
    assert len([n for n in waiting(shared) if ".command" in n]) == 3


# ---- what a member may not do: run programs as another, or reach outside ----


def attack(users: Users, shared: str, tmp_path: Path, code: str, *words: str | Path) -> None:
    """Run `code` as bob, then a worker as alice; assert that bob's program did not run."""
    marker = tmp_path / "lab" / "marker"
    done_by_bob = users.python("bob", code, shared, *words)
    assert done_by_bob.returncode == 0, done_by_bob.stderr
    run = users.fsqueue("alice", *WORK, GROUP, shared)
    assert run.returncode in (0, 3, 5) or "that no plan holds" in run.stderr  # R30
    assert "Traceback" not in run.stderr
    assert not marker.exists()


FORGE = """
path = f"{sys.argv[1]}/spools/cpu0/{sys.argv[3]}"
open(path, "wb").write(open(sys.argv[2], "rb").read())
os.chmod(path, int(sys.argv[4], 8))
"""


@pytest.mark.parametrize("mode", ["600", "640"])
def test_a_members_forged_command_is_not_run_and_not_failed(
    users: Users, shared: str, tmp_path: Path, mode: str
) -> None:
    text = tmp_path / "claim"
    text.write_bytes(forged(tmp_path / "lab" / "marker"))
    name = f"forged.command--uid{IDS['alice']}.c9.a0.r0"
    attack(users, shared, tmp_path, FORGE, text, name, mode)
    assert [n for n in waiting(shared) if n.startswith("forged.")], "it is left to bob"
    assert os.listdir(Path(shared, "failed")) == []


def test_a_members_forged_function_is_not_run_and_not_failed(
    users: Users, shared: str, tmp_path: Path
) -> None:
    source = f"open({str(tmp_path / 'lab' / 'marker')!r}, 'w').close()\ndef run(work): pass\n"
    kept = "evil-0123456789ab.py"
    options = {
        "code": "/tmp/evil.py",
        "name": "run",
        "is_class": False,
        "kept": kept,
        "sha256": hashlib.sha256(source.encode()).hexdigest(),
        "options": {},
    }
    facts = {"handler": "python", "options": options}
    text = tmp_path / "claim"
    text.write_bytes(forged(tmp_path / "lab" / "marker", **facts))
    keep = (
        "os.makedirs(f'{sys.argv[1]}/code'); "
        f"open(f'{{sys.argv[1]}}/code/{kept}', 'w').write({source!r})\n"
    )
    name = f"forged.evil--uid{IDS['alice']}.c9.a0.r0"
    attack(users, shared, tmp_path, keep + FORGE, text, name, "640")
    assert [n for n in waiting(shared) if n.startswith("forged.")], "it is left to bob"
    assert os.listdir(Path(shared, "failed")) == []


def test_workers_of_others_do_not_even_take_a_command(users: Users, shared: str) -> None:
    before = waiting(shared)
    assert all(f".command--uid{IDS['alice']}." in name for name in before)
    run = users.fsqueue("bob", *WORK, GROUP, shared)
    assert run.returncode == 5
    assert waiting(shared) == before
    explained = users.fsqueue("bob", "explain", GROUP, shared, before[0].split(".")[0])
    assert explained.returncode == 0


def test_an_output_that_a_member_moves_among_the_claims_is_not_run(
    users: Users, tmp_path: Path
) -> None:
    """Alice's own file, whose content bob chose: cat of his input."""
    lab = give(make(tmp_path / "lab"), "alice", group=LAB, mode=0o2770)
    evil = tmp_path / "evil.json"
    evil.write_bytes(forged(tmp_path / "lab" / "marker"))
    shared = planned(users, lab / "pool", [evil], GROUP)
    assert users.fsqueue("alice", *WORK, GROUP, shared).returncode == 0
    (output,) = Path(shared, "outputs").glob("*.out")
    assert output.read_bytes() == evil.read_bytes() and output.stat().st_uid == IDS["alice"]
    target = Path(shared, "spools", "cpu0", f"forged.command--uid{IDS['alice']}.c9.a0.r0")
    moved = users.python("bob", "os.rename(*sys.argv[1:])", output, target)
    assert "PermissionError" in moved.stderr, "outputs/ is sticky"
    output.rename(target)  # as the pool's owner might, or any member if outputs/ is not sticky
    attack(users, shared, tmp_path, "pass")
    assert target.with_name(target.name[:-1] + "1").exists(), "it is left alone"


def test_a_hard_link_to_another_claim_of_hers_is_not_run(
    users: Users, shared: str, tmp_path: Path
) -> None:
    """Where the kernel does not forbid links to other people's files."""
    old = tmp_path / "old"
    old.write_bytes(forged(tmp_path / "lab" / "marker"))
    give(old, "alice", mode=0o600)
    name = f"forged.command--uid{IDS['alice']}.c9.a0.r0"
    os.link(old, Path(shared, "spools", "cpu0", name))
    attack(users, shared, tmp_path, "pass")


def test_a_claim_cannot_be_rewritten_by_a_member(users: Users, shared: str) -> None:
    name = waiting(shared)[0]
    code = "open(f'{sys.argv[1]}/spools/cpu0/{sys.argv[2]}', 'r+')"
    refused = users.python("bob", code, shared, name)
    assert refused.returncode != 0 and "PermissionError" in refused.stderr


def test_only_installed_handlers_run_whatever_a_claim_names(
    users: Users, private: str, tmp_path: Path
) -> None:
    named = ["../../tmp/evil", "os", "evil:Made", "/bin/sh", "", "\0"]
    for number, handler in enumerate(named):
        id = f"forged{number}"
        planted = Path(private, "spools", "cpu0", f"{id}.other{number}.c9.a0.r0")
        planted.write_bytes(forged(tmp_path / "alice" / "marker", id=id, handler=handler))
        give(planted, "alice", mode=0o600)
    run = users.fsqueue("alice", *WORK, private)
    assert run.returncode == 5, run.stderr
    assert run.stderr.count("no handler is called") == len(named)
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "alice" / "marker").exists()
    assert len(done(private)) == 3 and len(waiting(private)) == len(named)


LINKS = """
pool, precious, first, second, third = sys.argv[1:]
os.symlink(precious, f"{pool}/outputs/{first}.out")
os.symlink(precious, f"{pool}/errors/{second}.a0.json")
os.symlink(os.path.dirname(precious), f"{pool}/partial/{third}")
os.symlink(precious, f"{pool}/spools/cpu1.lock")
os.symlink(precious, f"{pool}/status/x-1-a.json")
os.symlink(precious, f"{pool}/events/x-1-a.jsonl")
os.symlink(precious, f"{pool}/workers/x-1-a.b000001")
os.symlink(precious, f"{pool}/gpu_metrics.log")
os.symlink(precious, f"{pool}/plans/000002.json")
"""


def test_a_link_that_a_member_plants_leads_nowhere(
    users: Users, shared: str, tmp_path: Path
) -> None:
    precious = give(make(tmp_path / "precious"), "alice", mode=0o700) / "file"
    precious.write_text("precious\n")
    give(precious, "alice", mode=0o600)
    planned_ids = [name.split(".")[0] for name in waiting(shared)]
    planted = users.python("bob", LINKS, shared, precious, *planned_ids)
    assert planted.returncode == 0, planted.stderr
    run = users.fsqueue("alice", *WORK, GROUP, shared)
    # Every claim is done; but what a plan promises that cannot be read is not known to be (R30).
    assert (run.returncode, len(done(shared))) == (1, 3), run.stderr
    assert "plans/000002.json is a symbolic link" in run.stderr
    for command in ("status", "workers", "failed", "joblog", "check"):
        look = users.fsqueue("alice", command, GROUP, shared)
        assert "precious\n" not in look.stdout
        assert "Traceback" not in look.stderr
    assert look.returncode == 1
    assert f"outputs/{planned_ids[0]}.out is not a regular file" in look.stdout
    assert "plans/000002.json is a symbolic link" in look.stdout
    assert precious.read_text() == "precious\n"
    assert os.listdir(precious.parent) == ["file"]


def test_a_member_cannot_replace_a_directory_of_the_pool_by_a_link(
    users: Users, shared: str
) -> None:
    code = """
for what in ["spools/cpu0", "spools", "running", "partial", "outputs", "control"]:
    path = os.path.join(sys.argv[1], what)
    try:
        os.rename(path, path + ".aside")
    except PermissionError:
        print(what)
"""
    assert len(users.python("bob", code, shared).stdout.split()) == 6


def test_a_member_cannot_replace_another_workers_scratch_directory(
    users: Users, shared: str
) -> None:
    made = f"{shared}/outputs/.w-1-a"
    code = "from fsqueue.storage import directories; directories.make_private(sys.argv[1])"
    assert users.python("alice", code, made).returncode == 0
    for attempt in ("os.rename(p, p + 'x')", "os.rmdir(p)", "open(p + '/x', 'w')"):
        refused = users.python("bob", f"p = sys.argv[1]; {attempt}", made)
        assert "PermissionError" in refused.stderr


def test_tidying_up_does_not_follow_a_link_out_of_the_pool(
    users: Users, shared: str, tmp_path: Path
) -> None:
    """When a claim that was put back is done, its checkpoints go, from where bob put them."""
    precious = give(make(tmp_path / "precious"), "alice", mode=0o700)
    (precious / "file").write_text("precious")
    give(precious / "file", "alice")
    name = waiting(shared)[0]
    id = name.split(".")[0]
    move = "p, n = sys.argv[1:3]; os.rename(f'{p}/spools/cpu0/{n}', f'{p}/spools/cpu0/{n[:-1]}1');"
    move += "os.symlink(sys.argv[3], f'{p}/partial/{n.split(chr(46))[0]}')"
    assert users.python("bob", move, shared, name, precious).returncode == 0
    assert users.fsqueue("alice", *WORK, GROUP, shared).returncode == 0
    assert any(n.startswith(f"{id}.") and ".r1@" in n for n in done(shared))
    assert (precious / "file").read_text() == "precious"


@pytest.mark.parametrize("what", ["os.mkfifo", "os.mkdir"])
def test_special_files_block_no_command(
    users: Users, shared: str, tmp_path: Path, what: str
) -> None:
    odd = ["status/x-1-a.json", "events/x-1-a.jsonl", "errors/x.a0.json"]
    if what == "os.mkfifo":
        odd.append(f"spools/cpu0/forged.command--uid{IDS['alice']}.c9.a0.r0")
    code = f"[{what}(os.path.join(sys.argv[1], name)) for name in sys.argv[2:]]"
    attack(users, shared, tmp_path, code, *odd)
    for command in ("status", "workers", "failed"):
        look = users.fsqueue("alice", command, GROUP, shared)
        assert look.returncode in (0, 1, 3) and "Traceback" not in look.stderr  # 1: R30
    assert len(done(shared)) == 3


def test_a_status_of_enormous_size_and_one_with_escapes_harm_no_terminal(
    users: Users, shared: str, words: dict[str, str]
) -> None:
    code = """
pool = sys.argv[1]
with open(f"{pool}/status/big-1-a.json", "wb") as file:
    file.write(b'{"worker_id": "big-1-a", "loaded": [' + b'"",' * (40 << 20) + b'""]}')
with open(f"{pool}/status/esc-1-a.json", "w") as file:
    file.write('{"worker_id": "esc-1-a", "host": "\\\\u001b[2J", "model": "\\\\u001b]0;x"}')
with open(f"{pool}/events/esc-1-a.jsonl", "w") as file:
    file.write('{"event": "warning", "text": "\\\\u001b[2J\\\\nall is well", "t": 1}\\n')
for name in ("big-1-a", "esc-1-a"):
    open(f"{pool}/workers/{name}.b000001", "w").write("{}")
"""
    assert users.python("bob", code, shared).returncode == 0
    for command in (("workers",), ("status",), ("watch", "--once")):
        look = users.fsqueue("alice", *command, GROUP, shared)
        assert look.returncode in (0, 5), look.stderr
        assert "\x1b" not in look.stdout
        assert "Traceback" not in look.stderr


def test_a_workers_scratch_directory_is_its_own(tmp_path: Path) -> None:
    """No other user can put a link where a handler is about to write, or read what it writes."""
    mine = tmp_path / ".me-1-a"
    directories.make_private(str(mine))
    directories.make_private(str(mine))
    assert stat.S_IMODE(mine.stat().st_mode) == 0o700
    for harm in (lambda path: give(make(path), "bob"), lambda path: path.symlink_to(mine)):
        planted = tmp_path / f".other-{len(os.listdir(tmp_path))}"
        harm(planted)
        with pytest.raises(PoolError, match="was made by another user"):
            directories.make_private(str(planted))


def test_a_pickle_is_refused_as_a_checkpoint() -> None:
    import pickle

    from embed.outputs.claim_file import decode_checkpoint

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, ("/tmp/never",)

    with pytest.raises(ValueError, match="not a checkpoint"):
        decode_checkpoint(pickle.dumps(Bomb()))
    assert not os.path.exists("/tmp/never")
