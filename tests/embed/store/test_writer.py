"""Shards are published whole under numbers, and the lowest number with a key is used."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from embed.store import shard_names, spaces, writer
from embed.store.keys import Space, from_hexadecimal, hexadecimal, key
from embed.store.shard_names import ShardName
from embed.store.shards import Shard, StoreError, Vanished, encode_shard
from embed.store.view import View
from fsqueue.storage import atomic
from tests.support.crash import every_crash
from tests.support.stores import OPTIONS, columns_of, keys_of, open_view, put, vectors_of


def test_stored_vectors_are_found_exactly(tmp_path: Path) -> None:
    view = open_view(tmp_path / "store")
    put(view, range(100))
    other = open_view(tmp_path / "store")
    found, vectors = other.lookup(keys_of([5, 1000, 99, 0]))
    assert found.tolist() == [True, False, True, True]
    assert vectors.tobytes() == vectors_of([5, 99, 0]).tobytes()


def test_scattered_rows_are_read_in_the_order_given(tmp_path: Path) -> None:
    view = open_view(tmp_path / "store")
    put(view, range(50))
    wanted = [40, 3, 4, 5, 41, 0, 49, 20]
    _, vectors = view.lookup(keys_of(wanted))
    assert vectors.tobytes() == vectors_of(wanted).tobytes()


def test_the_first_vector_of_a_key_is_used_forever(tmp_path: Path) -> None:
    first, second = open_view(tmp_path / "store"), open_view(tmp_path / "store")
    put(first, range(10))
    used = put(second, range(5, 15), "other")
    assert used[:5].tobytes() == vectors_of(range(5, 10)).tobytes()
    assert used[5:].tobytes() == vectors_of(range(10, 15), "other").tobytes()
    assert [shard.count for shard in second.shards] == [10, 5]


def test_two_writers_of_one_key_at_once_get_the_same_vector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, fast = open_view(tmp_path / "store"), open_view(tmp_path / "store")
    stage = atomic.stage

    def overtaken(path: str, parts: object) -> None:
        monkeypatch.setattr(atomic, "stage", stage)
        put(fast, range(10), "fast")
        stage(path, parts)  # type: ignore[arg-type]

    monkeypatch.setattr(atomic, "stage", overtaken)
    used = put(slow, range(10), "slow")
    assert used.tobytes() == vectors_of(range(10), "fast").tobytes()
    assert [shard.count for shard in slow.shards] == [10, 10]
    assert slow.lookup(keys_of(range(10)))[1].tobytes() == used.tobytes()


def test_two_writers_of_one_key_get_the_same_vector_with_late_listings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slow one's mount shows the fast one's shard some attempts after link(2) refused it."""
    slow, fast = open_view(tmp_path / "store"), open_view(tmp_path / "store")
    put(fast, range(10), "fast")
    real, waited = shard_names.list_shards, list[float]()
    monkeypatch.setattr("embed.store.view.time.sleep", waited.append)
    monkeypatch.setattr(shard_names, "list_shards", lambda d: real(d) if len(waited) > 20 else [])
    used = put(slow, range(10), "slow")
    assert used.tobytes() == vectors_of(range(10), "fast").tobytes()
    assert [shard.name for shard in slow.shards] == [ShardName(1, 1), ShardName(2, 2)]


def test_a_number_that_was_compacted_away_meanwhile_is_not_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer listed shard 1, then was paused while 2 was published and both became 1-2."""
    view = open_view(tmp_path / "store")
    put(view, [1])
    folder = Path(view.directory)
    stage = atomic.stage

    def overtaken(path: str, parts: object) -> None:
        monkeypatch.setattr(atomic, "stage", stage)
        other = open_view(tmp_path / "store")
        put(other, [2])
        columns, vectors = columns_of([1, 2]), vectors_of([1, 2])
        data = encode_shard(
            columns, writer.norms(vectors), [vectors], width=8, dtype=np.dtype("<f4")
        )
        (folder / ShardName(1, 2).filename).write_bytes(b"".join(data))
        for number in (1, 2):
            (folder / ShardName(number, number).filename).unlink()
        stage(path, parts)  # type: ignore[arg-type]

    monkeypatch.setattr(atomic, "stage", overtaken)
    put(view, [3])
    assert [shard.name for shard in view.shards] == [ShardName(1, 2), ShardName(3, 3)]
    found, vectors = open_view(tmp_path / "store").lookup(keys_of([1, 2, 3]))
    assert found.all()
    assert vectors.tobytes() == vectors_of([1, 2, 3]).tobytes()


def test_a_crash_while_writing_leaves_no_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = open_view(tmp_path / "store")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    with pytest.raises(OSError, match="No space"):
        put(view, range(3))
    assert [path.name for path in Path(view.directory).iterdir()] == ["space.json"]


def test_a_shard_is_a_safetensors_file(tmp_path: Path) -> None:
    view = open_view(tmp_path / "store")
    put(view, range(3))
    with safe_open(view.shards[0].path, framework="numpy") as file:
        assert file.get_tensor("vectors").tobytes() == vectors_of(range(3)).tobytes()
        assert file.get_tensor("ids").tobytes() == b"record0record1record2"


def test_half_precision_is_stored_and_returned_rounded(tmp_path: Path) -> None:
    view = open_view(tmp_path / "store", store_dtype="float16")
    used = put(view, range(4))
    assert used.dtype == np.float16
    assert used.tobytes() == vectors_of(range(4)).astype(np.float16).tobytes()
    assert view.shards[0].size < 1500


def test_a_reader_whose_shard_vanished_reads_its_replacement(tmp_path: Path) -> None:
    view = open_view(tmp_path / "store")
    put(view, [1])
    put(view, [2])
    columns, vectors = columns_of([1, 2]), vectors_of([1, 2])
    data = encode_shard(columns, writer.norms(vectors), [vectors], width=8, dtype=np.dtype("<f4"))
    reader = open_view(tmp_path / "store")
    (Path(view.directory) / ShardName(1, 2).filename).write_bytes(b"".join(data))
    for number in (1, 2):
        (Path(view.directory) / ShardName(number, number).filename).unlink()
    with pytest.raises(Vanished):
        reader.shards[0].vectors(np.array([0]))
    assert reader.lookup(keys_of([1, 2]))[1].tobytes() == vectors.tobytes()


@pytest.mark.parametrize(
    "read",
    [Shard.columns, Shard.is_intact, lambda shard: Shard(os.path.dirname(shard.path), shard.name)],
)
def test_a_shard_that_loses_its_content_while_it_is_open_has_vanished_and_is_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Shard], object]
) -> None:
    """So do network file systems when another host removes it."""
    view = open_view(tmp_path / "store")
    put(view, range(50))
    shard = view.shards[0]
    open_file = os.open

    def remove_once_open(path: str, flags: int) -> int:
        monkeypatch.setattr(os, "open", open_file)
        fd = open_file(path, flags)
        os.truncate(path, 0)
        os.unlink(path)
        return fd

    monkeypatch.setattr(os, "open", remove_once_open)
    with pytest.raises(Vanished):
        read(shard)


@pytest.mark.parametrize("change", ["cut", "empty", "text", "flipped"])
def test_a_file_that_is_not_a_complete_shard_is_refused_by_name(
    tmp_path: Path, change: str
) -> None:
    view = open_view(tmp_path / "store")
    put(view, range(20))
    path = Path(view.shards[0].path)
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes({"cut": data[:-9], "empty": b"", "text": b"hello", "flipped": data}[change])
    if change == "flipped":
        assert not Shard(view.directory, ShardName(1, 1)).is_intact()
        return
    with pytest.raises(StoreError, match="00000001.safetensors"):
        Shard(view.directory, ShardName(1, 1))


def test_shards_of_another_width_are_refused(tmp_path: Path) -> None:
    view = open_view(tmp_path / "store")
    put(view, range(3))
    other = View(view.directory, Space.of({**OPTIONS, "width": 9}))
    with pytest.raises(StoreError, match="put here by hand"):
        other.refresh()


@pytest.mark.parametrize(
    ("names", "used", "missing"),
    [
        ([], [], []),
        ([(1, 1), (2, 2)], [(1, 1), (2, 2)], []),
        ([(1, 1), (1, 2), (2, 2), (3, 3)], [(1, 2), (3, 3)], []),
        ([(1, 5), (3, 8), (4, 4), (9, 9)], [(1, 5), (3, 8), (9, 9)], []),
        ([(1, 1), (4, 6), (9, 9)], [(1, 1), (4, 6), (9, 9)], [(2, 3), (7, 8)]),
        ([(2, 2)], [(2, 2)], [(1, 1)]),
    ],
)
def test_which_of_overlapping_shards_are_in_use(
    names: list[tuple[int, int]], used: list[tuple[int, int]], missing: list[tuple[int, int]]
) -> None:
    found = [ShardName(*name) for name in names]
    assert shard_names.in_use(found) == [ShardName(*name) for name in used]
    assert list(shard_names.gaps(found)) == missing
    assert set(shard_names.superseded(found)) == set(found) - set(shard_names.in_use(found))


OTHER_NAMES = (
    "1.safetensors 00000002-00000001.safetensors x space.json 00000000.safetensors "
    "00000001-00000001.safetensors"
).split()


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_other_names_are_not_shards(name: str) -> None:
    assert shard_names.parse(name) is None


def test_a_filename_is_parsed_as_it_was_written() -> None:
    for name in (ShardName(1, 1), ShardName(1, 9), ShardName(99_999_999, 123_456_789)):
        assert shard_names.parse(name.filename) == name


def test_a_key_follows_from_the_tokens_and_the_space() -> None:
    space = Space.of(OPTIONS).digest
    ids = bytes([5, 6, 7])
    assert key(space, [ids]) == key(space, [np.array([5, 6, 7], np.uint16)])
    assert key(space, [ids]) != key(space, [ids[:2], ids[2:]])
    others = {"pooling": "cls", "dtype": "float16", "long": "window", "max_residues": 5,
              "weights": "sha256:f", "store_dtype": "float16"}  # fmt: skip
    spaces = {Space.of({**OPTIONS, name: value}).digest for name, value in others.items()}
    assert len(spaces | {space}) == len(others) + 1
    assert Space.of({**OPTIONS, "model": "renamed"}).digest == space


def test_ids_are_keys_in_hexadecimal() -> None:
    keys = keys_of(range(300))  # some end in NUL, which numpy hides
    ids = hexadecimal(keys)
    assert {len(id) for id in ids} == {32}
    assert (from_hexadecimal(ids) == keys).all()
    with pytest.raises(ValueError, match="32"):
        from_hexadecimal(["ab"])


def test_a_store_whose_creator_was_killed_is_completed_by_the_next_process(tmp_path: Path) -> None:
    """A process that starts at the same time does not refuse the directory, either."""

    def prepare(n: int) -> dict[str, object]:
        return {**OPTIONS, "store": f"{tmp_path}/{n}"}

    n = 0
    for n, options in every_crash(prepare, spaces.open_space):
        assert spaces.store_options(options)["store"] == options["store"], n
        put(open_view(tmp_path / str(n)), range(3))
    assert n > 8
