"""A worker finds inputs where its host has them, and what is planned stays as it is."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import fsqueue
from fsqueue.errors import UsageError
from fsqueue.pool.claims import Claim
from fsqueue.worker.attempts.path_map import PathMap, split_pairs
from tests.support.processes import fsqueue as run_fsqueue


def test_paths_are_replaced_where_they_begin_and_nowhere_else() -> None:
    found = PathMap.parse(["/data/=/mnt/lab", "/other=/x"])
    assert found.path("/data/a.fa") == "/mnt/lab/a.fa"
    assert found.path("/data") == "/mnt/lab"
    assert found.path("--db=/data/x:/data/y") == "--db=/mnt/lab/x:/mnt/lab/y"
    for same in ("/database/a", "x/data/a", "data", "/old/data/a", ""):
        assert found.path(same) == same
    assert found.path("/other/b") == "/x/b"


def test_options_and_payload_are_mapped_at_any_depth() -> None:
    claim = Claim("h", "gpu0", {"argv": ["cat", "/a/x"]}, {"files": [{"path": "/a/y"}], "n": 3}, {})
    mapped = PathMap.parse(["/a=/b"]).claim(claim)
    assert mapped.options == {"argv": ["cat", "/b/x"]}
    assert mapped.payload == {"files": [{"path": "/b/y"}], "n": 3}
    assert PathMap().claim(claim) is claim


@pytest.mark.parametrize("word", ["/a", "a=/b", "/a=b", "=/b", "/a="])
def test_what_is_no_pair_of_absolute_paths_is_refused(word: str) -> None:
    with pytest.raises(UsageError, match="OLD=NEW"):
        PathMap.parse([word])


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("/a=/b", ["/a=/b"]),
        (" /a=/b   /c=/d ", ["/a=/b", "/c=/d"]),
        ("/my data=/mnt/lab data", ["/my data=/mnt/lab data"]),
        ("/my data=/mnt/lab data /c=/d", ["/my data=/mnt/lab data", "/c=/d"]),
        ("/a=/b /my data=/c", ["/a=/b", "/my data=/c"]),
        ("/a /b=/x\n\n/c=/d /e=/f\n", ["/a /b=/x", "/c=/d /e=/f"]),
        ("", []),
    ],
)
def test_the_pairs_of_the_variable_may_have_blanks(text: str, pairs: list[str]) -> None:
    assert split_pairs(text) == pairs


def test_the_name_of_a_directory_may_have_an_equals_sign() -> None:
    assert PathMap.parse(["/data/run=1=/mnt/run=2"]).path("/data/run=1/a") == "/mnt/run=2/a"


@pytest.mark.slow
@pytest.mark.parametrize("given", ["option", "variable"])
def test_a_pool_and_its_inputs_that_moved_are_worked_with_a_path_map(
    tmp_path: Path, given: str
) -> None:
    old, new = tmp_path / "the old", tmp_path / "new place"
    (old / "in").mkdir(parents=True)
    for name in ("a", "b"):
        (old / "in" / name).write_text(name)
        os.utime(old / "in" / name, ns=(10**18, 10**18))
    argv = {"argv": ["cat", "{input}", str(old / "in/a")]}
    os.chdir(tmp_path)  # where the program has to run
    fsqueue.plan(old / "pool", "command", old / "in", argv, gpus="cpu", attempts_max=2)
    shutil.move(old, new)

    lost = run_fsqueue("work", new / "pool", "--max-claims", "1")
    assert "fsqueue work --path-map OLD=NEW" in lost.stderr
    doctor = run_fsqueue("doctor", new / "pool", "--patience", "0")
    assert f"{old}/in/a of plan 1 is not on this host" in doctor.stdout
    assert f"there is {tmp_path}. If its directory" in doctor.stdout
    pair = f"{old}={new}"
    words, env = ([], {"FSQUEUE_PATH_MAP": f"/x y=/z {pair}"})
    if given == "option":
        words, env = ["--path-map", pair], {}
    done = run_fsqueue("work", new / "pool", *words, env=env)
    assert done.returncode == 0, done.stderr
    assert sorted(p.read_text() for p in (new / "pool/outputs").glob("*.out")) == ["aa", "ba"]
    assert run_fsqueue("work", new / "pool", "--path-map", "nonsense").returncode == 2
