"""Pools and spools are created once, checked when opened, and refused with a reason."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fsqueue.errors import PoolError, UsageError
from fsqueue.pool.layout import DIRECTORIES, FORMAT
from fsqueue.pool.names import natural
from fsqueue.pool.settings import (
    PoolDirectory,
    Spool,
    add_spool,
    create_pool,
    open_pool,
    read_spool,
    spool_names,
)
from fsqueue.storage import atomic
from fsqueue.storage.untrusted import read_json
from tests.support.crash import every_crash
from tests.support.interleave import Sequencer, interpose, run_in_threads
from tests.support.pools import contents

STRANGER = 65534

needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="giving a directory to another user needs root"
)

HOSTILE = {
    "empty": b"",
    "half written": b'{"format": 1, "id": "ab',
    "no object": b"[1, 2]",
    "a number": b"7",
    "not text": b"\xff\xfe\x00",
    "deep nesting": b"[" * 100_000,
    "a huge number": b'{"format": ' + b"9" * 5000 + b"}",
}


@pytest.fixture
def pool(tmp_path: Path) -> PoolDirectory:
    return create_pool(str(tmp_path / "pool"))


def rewrite(path: str, **facts: Any) -> None:
    """Change some facts of a JSON file, as with an editor."""
    old = json.loads(Path(path).read_bytes())
    Path(path).write_text(json.dumps(old | facts))


# ---- making ----


def test_a_new_pool_has_every_directory_and_its_settings(tmp_path: Path) -> None:
    pool = create_pool(str(tmp_path / "deep" / "pool"), lease_s=12.5, attempts_max=5)
    assert (pool.lease_s, pool.attempts_max) == (12.5, 5)
    assert {*os.listdir(pool.root)} == {*DIRECTORIES, "pool.json"}
    assert open_pool(pool.root) == pool


def test_making_a_pool_that_is_there_opens_it_with_the_settings_it_has(pool: PoolDirectory) -> None:
    before = contents(pool.root)
    assert create_pool(pool.root, lease_s=1.0, attempts_max=1) == pool
    assert contents(pool.root) == before


def test_a_directory_with_other_peoples_files_is_not_made_a_pool(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UsageError, match="is not empty and is not a pool"):
        create_pool(str(tmp_path))
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_a_file_is_not_made_a_pool(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for root in (tmp_path / "file", tmp_path / "file" / "inside"):
        with pytest.raises(UsageError, match="cannot become a pool"):
            create_pool(str(root))


@pytest.mark.slow
def test_a_crash_at_any_operation_of_making_a_pool_is_mended_by_making_it_again(
    tmp_path: Path,
) -> None:
    def make(root: str) -> object:
        return create_pool(root, lease_s=5.0)

    for _, root in every_crash(lambda n: f"{tmp_path}/{n}", make):
        assert create_pool(root, lease_s=5.0).lease_s == 5.0
        assert {name for name in os.listdir(root) if name[0] != "."} == {*DIRECTORIES, "pool.json"}


def test_of_two_processes_creating_a_pool_the_first_decides_its_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Sequencer()

    def link(real: Callable[..., None], private: str, target: str) -> None:
        first = b'"lease_s": 1.0' in Path(private).read_bytes()
        with steps(0 if first else 1):
            real(private, target)

    interpose(monkeypatch, link=link)
    root = str(tmp_path / "pool")
    pools = run_in_threads(
        lambda: create_pool(root, lease_s=1.0), lambda: create_pool(root, lease_s=2.0)
    )
    assert pools[0] == pools[1]
    assert pools[0].lease_s == 1.0


# ---- opening ----


def test_a_path_without_a_pool_is_refused_with_advice(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for root in (tmp_path, tmp_path / "nothing", tmp_path / "file"):
        with pytest.raises(UsageError, match=r"is not a pool.*fsqueue plan"):
            open_pool(str(root))


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_damaged_pool_json_is_refused_by_name(pool: PoolDirectory, data: bytes) -> None:
    Path(pool.settings).write_bytes(data)
    with pytest.raises(PoolError) as caught:
        open_pool(pool.root)
    assert pool.settings in str(caught.value)


@pytest.mark.parametrize(
    "facts",
    [
        {"id": 7},
        {"id": None},
        {"lease_s": "30"},
        {"lease_s": 0},
        {"lease_s": -1},
        {"lease_s": float("nan")},
        {"lease_s": float("inf")},
        {"lease_s": 10**400},
        {"lease_s": None},
        {"attempts_max": 0},
        {"attempts_max": 1.5},
        {"attempts_max": "3"},
        {"attempts_max": [3]},
    ],
    ids=str,
)
def test_invalid_settings_are_refused(pool: PoolDirectory, facts: dict[str, Any]) -> None:
    rewrite(pool.settings, **facts)
    with pytest.raises(PoolError, match="lacks a valid id, lease_s or attempts_max"):
        open_pool(pool.root)


@pytest.mark.parametrize("format", [0, FORMAT + 1, "1", None, [FORMAT]])
def test_a_pool_of_another_format_is_refused(pool: PoolDirectory, format: object) -> None:
    rewrite(pool.settings, format=format)
    with pytest.raises(PoolError, match="Use the version of fsqueue"):
        open_pool(pool.root)


def test_a_pool_json_that_is_a_symbolic_link_is_refused(
    pool: PoolDirectory, tmp_path: Path
) -> None:
    os.rename(pool.settings, tmp_path / "elsewhere.json")
    os.symlink(tmp_path / "elsewhere.json", pool.settings)
    with pytest.raises(PoolError, match="is a symbolic link"):
        open_pool(pool.root)


@needs_root
def test_a_pool_of_another_user_is_refused(pool: PoolDirectory) -> None:
    os.chown(pool.root, STRANGER, STRANGER)
    with pytest.raises(PoolError, match=f"belongs to user {STRANGER}"):
        open_pool(pool.root)


@needs_root
def test_a_pool_that_may_not_be_read_is_refused_with_the_reason(pool: PoolDirectory) -> None:
    os.chmod(pool.root, 0o700)
    child = os.fork()
    if child == 0:
        os.setuid(STRANGER)
        try:
            open_pool(pool.root)
        except PoolError as error:
            os._exit(0 if "cannot be read" in str(error) else 1)
        os._exit(2)
    assert os.waitpid(child, 0)[1] == 0


# ---- JSON ----


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_json_other_than_an_object_raises_and_names_the_file(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(data)
    with pytest.raises(PoolError) as caught:
        read_json(str(path))
    assert str(path) in str(caught.value)


# ---- spools ----


def test_the_first_weight_of_a_spool_stands(pool: PoolDirectory) -> None:
    assert add_spool(pool, Spool("gpu0", "RTX 3090", 1.0, "as requested")).weight == 1.0
    assert add_spool(pool, Spool("gpu0", "RTX 4090", 1.5)) == Spool(
        "gpu0", "RTX 3090", 1.0, "as requested"
    )


def test_spools_are_listed_in_natural_order_and_strange_names_are_left_out(
    pool: PoolDirectory,
) -> None:
    for name in ("gpu10", "gpu2", "cpu0"):
        add_spool(pool, Spool(name, "cpu", 1.0))
    for strange in ("gpu 3.json", "gpu4", ".gpu5.json", "../x.json".replace("/", "_") + "\n.json"):
        Path(pool.directory("spools"), strange).touch()
    assert spool_names(pool) == ["cpu0", "gpu2", "gpu10"]


@pytest.mark.parametrize(
    "facts",
    [
        {"model": None},
        {"model": 3090},
        {"weight": 0},
        {"weight": -1.0},
        {"weight": float("nan")},
        {"weight": float("inf")},
        {"weight": 10**400},
        {"weight": "1.0"},
        {"why": []},
    ],
    ids=str,
)
def test_a_spool_without_a_sensible_weight_is_refused_with_what_to_write(
    pool: PoolDirectory, facts: dict[str, Any]
) -> None:
    add_spool(pool, Spool("gpu0", "RTX 3090", 1.0))
    rewrite(pool.spool_file("gpu0"), **facts)
    with pytest.raises(PoolError, match='Write {"model": "RTX 3090", "weight": 1.0} into it'):
        read_spool(pool, "gpu0")


def test_a_spool_whose_planner_died_half_way_is_completed(tmp_path: Path) -> None:
    def prepare(n: int) -> PoolDirectory:
        return create_pool(f"{tmp_path}/{n}")

    spool = Spool("gpu0", "RTX 3090", 1.0)
    for _, pool in every_crash(prepare, lambda pool: add_spool(pool, spool)):
        assert add_spool(pool, spool) == spool
        assert atomic.names(pool.spool("gpu0")) == []


# ---- order ----


@pytest.mark.parametrize(
    ("names", "ordered"),
    [
        (["gpu10", "gpu9", "gpu1"], ["gpu1", "gpu9", "gpu10"]),
        (["b", "a10b2", "a2b10", "a2b9"], ["a2b9", "a2b10", "a10b2", "b"]),
        (["x²", "1²", "²", "x1"], ["1²", "x1", "x²", "²"]),
        (["", "0"], ["", "0"]),
    ],
)
def test_natural_order_takes_any_name(names: list[str], ordered: list[str]) -> None:
    assert sorted(names, key=natural) == ordered
