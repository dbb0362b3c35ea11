"""Every format is read back by its own library, and is written a block at a time."""

from __future__ import annotations

import builtins
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embed.outputs import claim_file, formats, table
from embed.outputs.formats import FORMATS
from embed.outputs.pairing import PairedTable
from embed.outputs.table import JoinedTable, OutputFile, Part
from fsqueue import FsqueueError, NotSupportedError

IDS = ["a", "b/c", "蛋白", "say\"so'", "", "dup", "dup", ".", "b_c", "dup~2", "a b", "x" * 300]
PROVENANCE = {"model": "m", "dtype": "float32", "counts": {"sequences": 6, "empty": 1},
              "versions": {"torch": "2"}}  # fmt: skip


def numbers(count: int, width: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


def output(path: Path, ids: list[str], rows: np.ndarray) -> str:
    claim_file.write(path, ids, rows, PROVENANCE)
    return str(path)


@pytest.fixture
def joined(tmp_path: Path) -> JoinedTable:
    """Twelve rows from two outputs, the middle of one of them left out, out of order."""
    rows = numbers(14)
    one = output(tmp_path / "one", [*IDS[6:], "not", "me"], rows[6:])
    two = output(tmp_path / "two", IDS[:6], rows[:6])
    return JoinedTable([Part(two, 0, 6, 6), Part(one, 0, 2, 8), Part(one, 2, 4, 8)])


@pytest.fixture(autouse=True, params=[1, 1 << 20])
def block_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Rows go one by one, or all at once: what is written is the same."""
    monkeypatch.setattr(table, "BLOCK_BYTES", request.param)
    return int(request.param)


def written(tmp_path: Path, format: str, table: Any) -> Path:
    path = tmp_path / f"table.{format}"
    FORMATS[format](path, table)
    return path


# ---- tables ----


def test_a_table_is_its_parts_in_order(joined: JoinedTable) -> None:
    assert [id for block in joined.blocks() for id in block.ids] == IDS
    assert np.concatenate([block.rows for block in joined.blocks()]).tolist() == (
        numbers(14)[:12].tolist()
    )
    assert (joined.count, joined.width) == (12, 3)


def test_rows_can_be_taken_in_any_order(joined: JoinedTable) -> None:
    order = np.array([11, 0, 6, 6, 5, 7])
    assert joined.take(order).tolist() == numbers(14)[order].tolist()
    assert joined.take(np.empty(0, np.int64)).shape == (0, 3)


def test_the_metadata_of_outputs_are_combined(joined: JoinedTable) -> None:
    assert joined.metadata["model"] == "m"
    assert json.loads(joined.metadata["counts"]) == {"sequences": 12, "empty": 2}
    assert table.combine_metadata([{"v": "2"}, {"v": "1"}, {"v": "2"}])["v"] == "1 | 2"


def test_an_output_with_other_rows_than_planned_is_refused(tmp_path: Path) -> None:
    path = output(tmp_path / "one", ["a"], numbers(1))
    with pytest.raises(FsqueueError, match=r"1 rows where 2 were planned"):
        JoinedTable([Part(path, 0, 2, 2)])


def test_outputs_of_different_widths_do_not_join(tmp_path: Path) -> None:
    one = output(tmp_path / "one", ["a"], numbers(1))
    two = output(tmp_path / "two", ["b"], numbers(1, 4))
    with pytest.raises(FsqueueError, match="not as wide"):
        JoinedTable([Part(one, 0, 1, 1), Part(two, 0, 1, 1)])


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_truncated_output_is_refused(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "one"
    output(path, ["a", "b"], numbers(2))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(FsqueueError, match="is missing or damaged"):
        OutputFile(str(path))
    path.unlink()
    with pytest.raises(FsqueueError, match="is missing or damaged"):
        OutputFile(str(path))


# ---- formats ----


def test_safetensors_are_read_by_their_library(tmp_path: Path, joined: JoinedTable) -> None:
    from safetensors import safe_open

    with safe_open(written(tmp_path, "safetensors", joined), framework="numpy") as file:
        rows, blob = file.get_tensor("embeddings"), file.get_tensor("ids").tobytes()
        offsets = file.get_tensor("id_offsets")
        metadata = file.metadata()
    assert rows.tolist() == numbers(14)[:12].tolist()
    assert [blob[a:b].decode() for a, b in zip(offsets, offsets[1:], strict=False)] == IDS
    assert metadata["model"] == "m"


def test_the_same_table_gives_the_same_bytes(tmp_path: Path, joined: JoinedTable) -> None:
    for format in ("safetensors", "npz", "parquet"):
        first = written(tmp_path, format, joined).read_bytes()
        assert written(tmp_path, format, joined).read_bytes() == first


def test_npz_is_read_by_numpy_without_pickle(tmp_path: Path, joined: JoinedTable) -> None:
    with np.load(written(tmp_path, "npz", joined), allow_pickle=False) as file:
        assert file["ids"].tolist() == IDS
        assert file["embeddings"].tolist() == numbers(14)[:12].tolist()
        assert json.loads(str(file["metadata"]))["model"] == "m"


def test_h5_has_a_dataset_for_each_id_and_none_is_lost(tmp_path: Path, joined: JoinedTable) -> None:
    import h5py

    with h5py.File(written(tmp_path, "h5", joined)) as file:
        assert file["a"][:].tolist() == numbers(14)[0].tolist()
        assert file["蛋白"].dtype == np.float32
        found = {
            data.attrs.get("original_id", name): data[:].tolist() for name, data in file.items()
        }
        assert len(file) == len(IDS)
        assert sorted(data.attrs.get("original_id", n) for n, data in file.items()) == sorted(IDS)
        assert found["b/c"] == numbers(14)[1].tolist()
        assert file.attrs["model"] == "m"


def test_parquet_has_a_row_for_each_sequence(tmp_path: Path, joined: JoinedTable) -> None:
    from pyarrow import parquet

    table = parquet.read_table(written(tmp_path, "parquet", joined))
    assert table["id"].to_pylist() == IDS
    assert table["embedding"].to_pylist() == numbers(14)[:12].tolist()
    assert table.schema.metadata[b"model"] == b"m"


@pytest.mark.parametrize("format", FORMATS)
def test_a_table_without_rows_is_well_formed(tmp_path: Path, format: str) -> None:
    path = output(tmp_path / "empty", [], np.empty((0, 3), np.float32))
    assert written(tmp_path, format, JoinedTable([Part(path, 0, 0, 0)])).stat().st_size > 0
    assert JoinedTable([], 3).width == 3


@pytest.mark.parametrize(("format", "library"), [("h5", "h5py"), ("parquet", "pyarrow")])
def test_a_library_that_is_not_installed_is_named_with_what_to_type(
    tmp_path: Path, joined: JoinedTable, monkeypatch: pytest.MonkeyPatch, format: str, library: str
) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.split(".")[0] == library:
            raise ImportError(f"No module named {name!r}")
        return real(name, *rest)

    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(NotSupportedError, match=rf"pip install 'fsqueue\[{format}\]'"):
        written(tmp_path, format, joined)


# ---- columns ----


def test_columns_are_written_in_every_format(
    tmp_path: Path,
) -> None:
    import h5py
    from pyarrow import parquet
    from safetensors.numpy import load_file

    rows, kinds = numbers(3), np.array([0, 1, 4], np.uint8)
    columns = {"lengths": np.array([5, 6, 7]), "flags": kinds}
    claim_file.write(tmp_path / "one", ["a", "b", "c"], rows, PROVENANCE, columns)
    joined = JoinedTable(
        [Part(str(tmp_path / "one"), 1, 2, 3), Part(str(tmp_path / "one"), 0, 1, 3)]
    )
    expected = [6, 7, 5]
    assert load_file(written(tmp_path, "safetensors", joined))["lengths"].tolist() == expected
    assert load_file(written(tmp_path, "safetensors", joined))["flags"].tolist() == [1, 4, 0]
    assert np.load(written(tmp_path, "npz", joined))["lengths"].tolist() == expected
    table = parquet.read_table(written(tmp_path, "parquet", joined))
    assert table["lengths"].to_pylist() == expected
    with h5py.File(written(tmp_path, "h5", joined)) as file:
        assert file["a"].attrs["lengths"] == 5


# ---- pairs ----


def table_of(tmp_path: Path, name: str, ids: list[str], rows: np.ndarray) -> JoinedTable:
    half = len(ids) // 2
    parts = []
    for number, (low, high) in enumerate(((0, half), (half, len(ids)))):
        path = output(tmp_path / f"{name}{number}", ids[low:high], rows[low:high])
        parts.append(Part(path, 0, high - low, high - low))
    return JoinedTable(parts)


def pairs(table: PairedTable) -> tuple[list[str], list[list[float]]]:
    blocks = list(table.blocks())
    rows = [row for block in blocks for row in block.rows.tolist()]
    return [id for block in blocks for id in block.ids], rows


def test_pairs_are_made_by_id_whatever_the_order(tmp_path: Path) -> None:
    ids = [f"id{n}" for n in range(50)]
    shuffled = np.random.default_rng(1).permutation(50)
    one, two = numbers(50, 3), numbers(50, 5, seed=1)
    first = table_of(tmp_path, "one", ids, one)
    second = table_of(tmp_path, "two", [ids[n] for n in shuffled], two[shuffled])
    paired = PairedTable(first, second)
    assert (paired.count, paired.width, paired.name) == (50, 8, "data")
    assert pairs(paired) == (ids, np.concatenate([one, two], axis=1).tolist())
    assert [*paired.unmatched(0), *paired.unmatched(1)] == []


def test_rows_without_a_partner_are_left_out_and_listed(tmp_path: Path) -> None:
    one, two = numbers(4, 3), numbers(3, 2, seed=1)
    first = table_of(tmp_path, "one", ["a", "b", "c", "d"], one)
    paired = PairedTable(first, table_of(tmp_path, "two", ["e", "d", "b"], two))
    expected = [[*one[1], *two[2]], [*one[3], *two[1]]]
    assert pairs(paired) == (["b", "d"], np.array(expected).tolist())
    assert list(paired.unmatched(0)) == ["a", "c"]
    assert list(paired.unmatched(1)) == ["e"]


def test_a_repeated_id_pairs_in_its_order(tmp_path: Path) -> None:
    one, two = numbers(4, 1), numbers(3, 1, seed=1)
    first = table_of(tmp_path, "one", ["a", "b", "a", "a"], one)
    paired = PairedTable(first, table_of(tmp_path, "two", ["a", "a", "b"], two))
    expected = [[one[0, 0], two[0, 0]], [one[1, 0], two[2, 0]], [one[2, 0], two[1, 0]]]
    assert pairs(paired) == (["a", "b", "a"], np.array(expected).tolist())
    assert list(paired.unmatched(0)) == ["a"]


@pytest.mark.parametrize("format", FORMATS)
def test_pairs_are_written_in_every_format(tmp_path: Path, format: str) -> None:
    first = table_of(tmp_path, "one", ["a", "b"], numbers(2, 3))
    path = written(
        tmp_path, format, PairedTable(first, table_of(tmp_path, "two", ["b"], numbers(1, 2)))
    )
    if format == "safetensors":
        from safetensors.numpy import load_file

        assert load_file(path)["data"].shape == (1, 5)
    assert path.stat().st_size > 0


def test_an_empty_table_has_no_pairs(tmp_path: Path) -> None:
    empty = table_of(tmp_path, "one", [], np.empty((0, 3), np.float32))
    assert PairedTable(empty, table_of(tmp_path, "two", ["b"], numbers(1, 2))).count == 0
    assert formats.EXTRAS.keys() <= FORMATS.keys()
