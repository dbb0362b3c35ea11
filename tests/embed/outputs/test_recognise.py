"""What an earlier command wrote is known by what it holds, whatever it is called (R39)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from embed.outputs import claim_file, recognise
from embed.outputs.formats import FORMATS
from embed.outputs.table import JoinedTable, Part
from embed.outputs.virnucpro import write_features
from fsqueue import Earlier

OURS = {"weights": "one", "pooling": "mean"}
OTHERS = {"weights": "two", "pooling": "mean"}


@pytest.fixture
def table(tmp_path: Path) -> JoinedTable:
    rows = np.ones((2, 3), np.float32)
    claim_file.write(tmp_path / "part", ["a", "b"], rows, {"model": "m", **OURS})
    return JoinedTable([Part(str(tmp_path / "part"), 0, 2, 2)])


@pytest.mark.parametrize("name", ["table", "table.npz", "notes.txt"])
@pytest.mark.parametrize("format", FORMATS)
def test_r39_a_table_is_recognised_in_every_format_and_under_any_name(
    tmp_path: Path, table: JoinedTable, format: str, name: str
) -> None:
    FORMATS[format](tmp_path / name, table)
    path = str(tmp_path / name)
    assert recognise.table(path, [OURS]) is Earlier.SAME
    assert recognise.table(path, [OTHERS]) is Earlier.OTHER


@pytest.mark.parametrize("format", ["safetensors", "npz", "h5", "parquet"])
def test_r39_a_name_makes_nothing_ours(tmp_path: Path, format: str) -> None:
    path = tmp_path / f"table.{format}"
    path.write_bytes(b"a month of work\n")
    assert recognise.table(str(path), [OURS]) is Earlier.FOREIGN


def test_r39_a_file_of_the_same_kind_with_other_contents_is_not_ours(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    safetensors = pytest.importorskip("safetensors.numpy")
    rows = np.ones((2, 3), np.float32)
    with (tmp_path / "npz").open("wb") as npz:
        np.savez(npz, embeddings=rows)
    safetensors.save_file({"embeddings": rows}, tmp_path / "safetensors")
    with h5py.File(tmp_path / "h5", "w") as file:
        file["embeddings"] = rows
    parquet.write_table(pyarrow.table({"id": ["a"]}), tmp_path / "parquet")
    for name in ("npz", "safetensors", "h5", "parquet"):
        assert recognise.table(str(tmp_path / name), [OURS]) is Earlier.FOREIGN, name


def test_r39_an_empty_file_holds_nothing_that_could_be_lost(tmp_path: Path) -> None:
    path = str(tmp_path / "empty")
    Path(path).touch()
    for kind in (recognise.features, recognise.marker, recognise.listing, recognise.prepared):
        assert kind(path) is Earlier.SAME
    assert recognise.table(path, [OURS]) is recognise.records(path) is Earlier.SAME


def test_r39_features_are_recognised_by_their_keys(tmp_path: Path, table: JoinedTable) -> None:
    torch = pytest.importorskip("torch")
    write_features(tmp_path / "x", table, "esm2")
    torch.save({"state": torch.zeros(2)}, tmp_path / "checkpoint.pt")
    assert recognise.features(str(tmp_path / "x")) is Earlier.SAME
    assert recognise.features(str(tmp_path / "checkpoint.pt")) is Earlier.FOREIGN


@pytest.mark.parametrize(
    ("kind", "ours", "foreign"),
    [
        (recognise.listing, "seq1\tesm2\n", "seq1 esm2\n"),
        (recognise.prepared, ">contig_chunk_1F1\nMKV\n", ">contig\nMKV\n"),
        (recognise.records, '{"id": "a"}\n', "[1, 2]\n"),
        (recognise.marker, "", "x"),
    ],
)
def test_r39_texts_are_recognised_by_their_first_line(
    tmp_path: Path, kind: object, ours: str, foreign: str
) -> None:
    assert callable(kind)
    for text, expected in ((ours, Earlier.SAME), (foreign, Earlier.FOREIGN)):
        (tmp_path / "file").write_text(text)
        assert kind(str(tmp_path / "file")) is expected, text
