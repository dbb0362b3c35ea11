"""Formats that people's own scripts read: extract.py's files, HDF5 per residue, float16."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from embed import Encoder, read
from embed.options import OPTIONS
from embed.outputs.merge import MergeRequest, merge
from embed.single_file import embed_file
from fsqueue import FsqueueError, UsageError
from fsqueue.cli import cli
from tests.embed.conftest import fasta
from tests.support.fake_embeddings import embed_all

SEQUENCES = [
    ("sp|P1|A", "MKVLAAGIVGLC"),
    ("b/c", "MKAY"),
    ("same", "MM"),
    ("same", "WWW"),
    (".hidden", "MKV"),
    ("long" * 90, "MKL"),
]


@pytest.fixture
def proteins(tmp_path: Path) -> Path:
    path = tmp_path / "x.faa"
    path.write_text(fasta(SEQUENCES))
    return path


def write(path: Path, out: Path, model: Path, **options: Any) -> None:
    chosen = {option.name: option.default for option in OPTIONS} | {"model": str(model), **options}
    embed_file(str(path), str(out), chosen, progress=lambda *_: None, warn=lambda _: None)


def encode(model: Path, texts: list[str], **options: Any) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Encoder.load(str(model), **options).encode(texts)


# ---- extract.py's files ----


def test_files_are_read_as_fair_esm_s_readme_reads_those_of_extract_py(
    proteins: Path, tmp_path: Path, tiny_model: Path
) -> None:
    """README of fair-esm: torch.load(f'{folder}/{header}.pt')['mean_representations'][layer]."""
    write(proteins, tmp_path / "out", tiny_model, format="esm", layers="0,1,2")
    found = torch.load(tmp_path / "out" / "sp|P1|A.pt")
    assert (found["label"], list(found["mean_representations"])) == ("sp|P1|A", [0, 1, 2])
    for layer in (0, 1, 2):
        expected = encode(tiny_model, [SEQUENCES[0][1]], layers=str(layer))[0]
        vector = found["mean_representations"][layer]
        assert vector.dtype == torch.float32
        np.testing.assert_allclose(vector.numpy(), expected, atol=1e-5)
        assert os.path.getsize(tmp_path / "out" / "sp|P1|A.pt") < 5000  # not its whole block


def test_names_that_no_file_can_have_are_changed_and_labels_are_not(
    proteins: Path, tmp_path: Path, tiny_model: Path
) -> None:
    write(proteins, tmp_path / "out", tiny_model, format="esm")
    names = sorted(os.listdir(tmp_path / "out"))
    assert len(names) == len(SEQUENCES)
    assert {"b_c.pt", "same.pt", "same~2.pt", "hidden.pt"} < {*names}
    assert max(map(len, names)) == 243
    labels = sorted(torch.load(tmp_path / "out" / name)["label"] for name in names)
    assert labels == sorted(id for id, _ in SEQUENCES)


@pytest.mark.parametrize(
    ("pooling", "key", "shape"),
    [("per-token", "representations", (12, 32)), ("cls", "bos_representations", (32,))],
)
def test_other_poolings_have_extract_py_s_other_entries(
    proteins: Path, tmp_path: Path, tiny_model: Path, pooling: str, key: str, shape: tuple[int, ...]
) -> None:
    write(proteins, tmp_path / "out", tiny_model, format="esm", pooling=pooling)
    found = torch.load(tmp_path / "out" / "sp|P1|A.pt")
    assert found[key][2].shape == shape


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "max"}, "hold a mean, the begin token, or a row for each"),
        ({"layers": "mean:0..1"}, "hold each layer by its number"),
    ],
)
def test_what_extract_py_has_no_place_for_is_refused_before_the_first_batch(
    proteins: Path, tmp_path: Path, tiny_model: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        write(proteins, tmp_path / "out", tiny_model, format="esm", **options)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_not_written_to(
    proteins: Path, tmp_path: Path, tiny_model: Path
) -> None:
    (tmp_path / "out").mkdir()
    write(proteins, tmp_path / "out", tiny_model, format="esm")
    with pytest.raises(UsageError, match="into a new folder"):
        write(proteins, tmp_path / "out", tiny_model, format="esm")
    with pytest.raises(UsageError, match="into a new folder"):
        write(proteins, proteins, tiny_model, format="esm")
    assert proteins.read_text().startswith(">sp|P1|A")


def run(*words: object) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words])


def test_a_pool_is_merged_into_a_folder_of_files(proteins: Path, tmp_path: Path) -> None:
    embed_all(tmp_path / "pool", [str(proteins)])
    merged = run("embed", "merge", tmp_path / "pool", tmp_path / "out", "--format", "esm")
    assert merged.exit_code == 0, merged.output
    found = torch.load(tmp_path / "out" / "b_c.pt")
    assert found["mean_representations"][1].shape == (5,)
    again = run("embed", "merge", tmp_path / "pool", tmp_path / "out", "--format", "esm")
    assert "into a new folder" in str(again.exception)


# ---- HDF5 per residue ----


def test_hdf5_per_residue_is_read_in_three_lines(
    proteins: Path, tmp_path: Path, tiny_model: Path
) -> None:
    write(proteins, tmp_path / "x.h5", tiny_model, format="h5", pooling="per-token")
    import h5py

    with h5py.File(tmp_path / "x.h5") as file:
        residues = {name: dataset[:] for name, dataset in file.items()}
        assert file["b_c"].attrs["original_id"] == "b/c"
        assert file["same~2"].attrs["lengths"] == 3
    assert residues["sp|P1|A"].shape == (12, 32) and residues["same~2"].shape == (3, 32)
    expected = Encoder.load(str(tiny_model), pooling="per-token").encode_tokens(["MKAY"])[0]
    np.testing.assert_allclose(residues["b_c"], expected, atol=1e-5)


# ---- float16 ----


def rows_of(path: Path) -> np.ndarray:
    if path.suffix == ".safetensors":
        return read(path).rows
    if path.suffix == ".npz":
        return np.asarray(np.load(path)["embeddings"])
    if path.suffix == ".h5":
        import h5py

        with h5py.File(path) as file:
            names = ["sp|P1|A", "b_c", "same", "same~2", "hidden", SEQUENCES[-1][0]]
            names[4] = ".hidden"
            return np.array([file[name][:] for name in names])
    import pyarrow.parquet

    column = pyarrow.parquet.read_table(path)["embedding"].combine_chunks()
    return np.asarray(column.flatten().to_numpy(zero_copy_only=False)).reshape(len(column), -1)


@pytest.mark.parametrize("ending", ["safetensors", "npz", "h5", "parquet"])
def test_float16_is_the_nearest_to_float32_in_half_the_size(
    proteins: Path, tmp_path: Path, tiny_model: Path, ending: str
) -> None:
    found = []
    for dtype in ("float32", "float16"):
        out = tmp_path / f"{dtype}.{ending}"
        write(proteins, out, tiny_model, format=ending, output_dtype=dtype)
        found.append(rows_of(out))
    assert [rows.dtype.name for rows in found] == ["float32", "float16"]
    assert np.array_equal(found[1], found[0].astype(np.float16))


def test_rows_for_each_token_can_be_float16_and_torch_can_map_them(
    proteins: Path, tmp_path: Path, tiny_model: Path
) -> None:
    from safetensors.torch import load_file

    out = tmp_path / "x.safetensors"
    write(proteins, out, tiny_model, pooling="per-token", output_dtype="float16")
    found = load_file(out)
    assert found["embeddings"].dtype == torch.float16
    assert found["offsets"].tolist()[:3] == [0, 12, 16]
    table = read(out)
    assert table.ids[:2] == ["sp|P1|A", "b/c"] and table.metadata["output_dtype"] == "float16"


def test_a_number_that_float16_cannot_hold_is_refused_and_nothing_is_written(
    proteins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.support import fake_embeddings

    monkeypatch.setattr(fake_embeddings, "row", lambda *_: np.full(5, 7e4, np.float32))
    embed_all(tmp_path / "pool", [str(proteins)])
    request = MergeRequest(output_dtype="float16")
    with pytest.raises(FsqueueError, match=r"numbers beyond 65,504.*Write float32"):
        merge(str(tmp_path / "pool"), str(tmp_path / "x.npz"), request)
    assert not (tmp_path / "x.npz").exists()


def test_how_a_table_is_written_makes_no_other_claim(
    proteins: Path, tmp_path: Path, tiny_model: Path
) -> None:
    words = ["plan", "embed", tmp_path / "pool", proteins, "--model", tiny_model]
    assert "1 claim planned" in run(*words).output
    again = run(*words, "--output-dtype", "float16", "--format", "npz")
    assert "0 claims planned; 1 input planned before" in again.output, again.output
    refused = run(*words, "--output-dtype", "float16", "--format", "virnucpro")
    assert "that pipeline reads float32" in str(refused.exception)
