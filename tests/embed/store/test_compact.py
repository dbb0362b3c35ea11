"""Compactions lose nothing, whatever is killed or read meanwhile; verify finds damage."""

from __future__ import annotations

import errno
import os
import time
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embed.store import Store
from embed.store import compact as compaction
from embed.store.compact import compact
from embed.store.info import info
from embed.store.keys import hexadecimal
from embed.store.shard_names import ShardName, list_shards
from embed.store.shards import StoreError
from embed.store.verify import verify
from embed.store.view import View
from fsqueue.storage import atomic
from tests.support.crash import CHANGES
from tests.support.stores import columns_of, keys_of, open_view, put, vectors_of


def filled(root: Path, shards: int = 6, each: int = 10) -> View:
    view = open_view(root)
    for number in range(shards):
        put(view, range(number * each, (number + 1) * each))
    return view


def holds(root: Path, numbers: range) -> bool:
    """Return whether a new reader finds every number with its own vector."""
    found, vectors = open_view(root).lookup(keys_of(numbers))
    return bool(found.all()) and vectors.tobytes() == vectors_of(numbers).tobytes()


def test_many_shards_become_one_that_holds_the_same(tmp_path: Path) -> None:
    view = filled(tmp_path / "store")
    before = [shard.columns() for shard in view.shards]
    done = compact(view, grace_s=0)
    assert (done.merged, done.made, done.removed) == (6, 1, 6)
    assert [path for path in os.listdir(view.directory) if path != "space.json"] == [
        "00000001-00000006.safetensors"
    ]
    assert holds(tmp_path / "store", range(60))
    columns = view.shards[0].columns()
    assert columns.ids == [id for part in before for id in part.ids]
    assert columns.lengths.tolist() == list(range(60))
    assert not list(verify(view))


def test_superseded_files_stay_for_a_while_and_are_not_read(tmp_path: Path) -> None:
    view = filled(tmp_path / "store")
    done = compact(view)
    assert (done.removed, done.waiting) == (0, 6)
    assert [shard.name for shard in view.shards] == [ShardName(1, 6)]
    found = info("default", view)
    assert (found.vectors, found.shards, found.superseded) == (60, 1, 6)
    assert compact(view, grace_s=0).removed == 6


def test_a_writer_continues_after_the_compaction_s_number(tmp_path: Path) -> None:
    view = filled(tmp_path / "store")
    compact(open_view(tmp_path / "store"), grace_s=0)
    put(view, [60])
    assert [shard.name for shard in view.shards] == [ShardName(1, 6), ShardName(7, 7)]


def test_the_first_of_duplicates_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    view, other = open_view(tmp_path / "store"), open_view(tmp_path / "store")
    stage = atomic.stage

    def overtaken(path: str, parts: Any) -> None:
        monkeypatch.setattr(atomic, "stage", stage)
        put(other, range(5))
        stage(path, parts)

    monkeypatch.setattr(atomic, "stage", overtaken)
    put(view, range(3, 8), "late")
    assert info("default", view).duplicates == 2
    assert compact(view, grace_s=0).duplicates == 2
    found, vectors = view.lookup(keys_of(range(8)))
    assert found.all()
    expected = np.concatenate([vectors_of(range(5)), vectors_of(range(5, 8), "late")])
    assert vectors.tobytes() == expected.tobytes()


def test_no_shard_is_made_larger_than_the_limit(tmp_path: Path) -> None:
    view = filled(tmp_path / "store")
    compact(view, bytes_max=7 * view.shards[0].size // 2, grace_s=0)
    assert [shard.name for shard in view.shards] == [ShardName(1, 3), ShardName(4, 6)]
    assert compact(view, bytes_max=view.shards[0].size, grace_s=0).made == 0
    assert holds(tmp_path / "store", range(60))


@pytest.mark.slow
def test_a_compaction_may_be_killed_at_any_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in count(1):
        root = tmp_path / f"store{step}"
        view = filled(root, shards=3, each=4)
        calls = count(1)

        def dying(real: Any, calls: Any = calls, step: int = step) -> Any:
            def call(*args: Any, **how: Any) -> Any:
                if next(calls) == step:
                    raise SystemExit("killed")
                return real(*args, **how)

            return call

        with monkeypatch.context() as patch:
            for verb in (*CHANGES, "open", "write"):
                patch.setattr(os, verb, dying(getattr(os, verb)))
            try:
                compact(view, grace_s=0)
            except SystemExit:
                finished = False
            else:
                finished = True
        assert holds(root, range(12)), step
        assert not list(verify(open_view(root))), step
        if finished:
            break
        compact(open_view(root), grace_s=0)
        assert list_shards(view.directory) == [ShardName(1, 3)], step
        assert holds(root, range(12)), step
    assert step > 20


@pytest.mark.parametrize("answer", [errno.ENOENT, errno.ESTALE, errno.EBADF])
def test_a_file_that_is_removed_between_opening_and_reading_is_read_from_its_replacement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: int
) -> None:
    """An open file stays readable locally; network mounts answer one of these errors."""
    view = filled(tmp_path / "store")
    reader, real = open_view(tmp_path / "store"), os.preadv

    def removed(*_: Any) -> int:
        monkeypatch.setattr(os, "preadv", real)
        assert compact(view, grace_s=0).removed == 6
        raise OSError(answer, os.strerror(answer))

    monkeypatch.setattr(os, "preadv", removed)
    found, vectors = reader.lookup(keys_of(range(60)))
    assert found.all()
    assert vectors.tobytes() == vectors_of(range(60)).tobytes()
    assert [shard.name for shard in reader.shards] == [ShardName(1, 6)]


def test_a_missing_shard_is_reported_and_never_compacted_over(tmp_path: Path) -> None:
    view = filled(tmp_path / "store")
    os.unlink(view.shards[2].path)
    fresh = open_view(tmp_path / "store")
    assert ["shard 3 is missing" in line for line in verify(fresh)] == [True]
    compact(fresh, grace_s=0)
    assert [shard.name for shard in fresh.shards] == [ShardName(1, 2), ShardName(4, 6)]
    assert len(list(verify(fresh))) == 1
    found, _ = fresh.lookup(keys_of(range(60)))
    assert found.sum() == 50


def test_a_damaged_shard_is_reported_and_never_compacted(tmp_path: Path) -> None:
    view = filled(tmp_path / "store", shards=2)
    path = Path(view.shards[1].path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    assert ["00000002" in line and "damaged" in line for line in verify(view)] == [True]
    with pytest.raises(StoreError, match="00000002"):
        compact(view, grace_s=0)
    assert len(list_shards(view.directory)) == 2


def test_leftovers_of_dead_writers_are_removed_after_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = filled(tmp_path / "store", shards=1)
    old, young = (Path(view.directory) / name for name in (".1-old", ".1-young"))
    old.write_bytes(b"half a shard")
    young.write_bytes(b"half a shard")
    tomorrow = time.time() + compaction.LEFTOVER_AGE_S + 3600.0
    os.utime(young, (tomorrow, tomorrow))
    monkeypatch.setattr(compaction, "_now", lambda _: tomorrow)
    compact(view)
    assert not old.exists()
    assert young.exists()


def test_a_file_that_nfs_3_is_just_making_is_not_a_day_old(tmp_path: Path) -> None:
    """An exclusive create there keeps a number of its own in the times, until they are set."""
    view = filled(tmp_path / "store", shards=1)
    made = Path(view.directory) / ".1-made"
    made.write_bytes(b"")
    os.utime(made, (7, 7))
    compact(view)
    assert made.exists()


def test_texts_and_inputs_survive_a_compaction(tmp_path: Path) -> None:
    from dataclasses import replace

    from embed.store import writer

    view = open_view(tmp_path / "store")
    for number, name in enumerate(("b.txt", "a.txt", "b.txt")):
        columns = replace(
            columns_of([number], name),
            texts=[f"text {number} é\udcff"],
            begins=np.array([100 * number]),
        )
        writer.add(view, columns, vectors_of([number]))
    writer.add(view, columns_of([7], "c.faa"), vectors_of([7]))
    compact(view, grace_s=0)
    columns = view.shards[0].columns()
    assert columns.input_names == ["b.txt", "a.txt", "c.faa"]
    assert columns.inputs.tolist() == [0, 1, 0, 2]
    assert columns.texts == ["text 0 é\udcff", "text 1 é\udcff", "text 2 é\udcff", ""]
    assert columns.begins.tolist() == [0, 100, 200, -1]
    ids = hexadecimal(keys_of([2, 7]))
    hits = Store(tmp_path / "store").records(ids)
    assert [(hit.text, hit.begin) for hit in hits] == [("text 2 é\udcff", 200), ("", -1)]
