"""Outputs are ordinary safetensors files whose bytes depend on their content alone."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from embed.outputs import claim_file
from fsqueue import ClaimImpossible

META = {"model": "m", "counts": {"b": 1, "a": 2}, "versions": {"torch": "2"}, "pooling": "mean"}


def rows(count: int, width: int = 3) -> np.ndarray:
    return np.arange(count * width, dtype=np.float32).reshape(count, width)


@pytest.mark.parametrize("count", [0, 1, 7])
def test_an_output_is_read_back_as_written(tmp_path: Path, count: int) -> None:
    ids = [f'id "{n}" é /\\\n' for n in range(count)]
    claim_file.write(tmp_path / "x.safetensors", ids, rows(count), META)
    found = claim_file.read(tmp_path / "x.safetensors")
    assert found.ids == ids
    assert np.array_equal(found.rows, rows(count))
    assert found.rows.dtype == np.float32
    assert found.metadata == META


def test_the_safetensors_library_reads_it_without_embed(tmp_path: Path) -> None:
    claim_file.write(tmp_path / "x.safetensors", ["a", "a"], rows(2), META)
    assert np.array_equal(load_file(tmp_path / "x.safetensors")["embeddings"], rows(2))
    with safe_open(tmp_path / "x.safetensors", framework="numpy") as file:
        assert json.loads(file.metadata()["ids"]) == ["a", "a"]
        assert file.get_slice("embeddings")[1:2].tolist() == rows(2)[1:2].tolist()


def test_the_bytes_are_the_same_in_every_process(tmp_path: Path) -> None:
    """The safetensors library itself orders metadata by a hash that changes with the process."""
    code = (
        "import sys, hashlib, numpy as np; from pathlib import Path\n"
        "from embed.outputs import claim_file\n"
        "path = Path(sys.argv[1]); meta = {k: k for k in sys.argv[2].split(',')}\n"
        "claim_file.write(path, ['a'], np.ones((1, 3), np.float32), meta)\n"
        "print(hashlib.sha256(path.read_bytes()).hexdigest())"
    )
    digests = set()
    for order in ("model,dtype,pooling,weights", "weights,pooling,dtype,model"):
        command = [sys.executable, "-c", code, str(tmp_path / "x"), order]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        digests.add(done.stdout)
    assert len(digests) == 1


def test_data_begin_at_a_multiple_of_eight(tmp_path: Path) -> None:
    for length in range(9):
        claim_file.write(tmp_path / "x", ["i" * length], rows(1), META)
        head = int.from_bytes((tmp_path / "x").read_bytes()[:8], "little")
        assert head % 8 == 0


def test_a_header_that_no_library_would_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim_file, "HEADER_MAX", 1000)
    with pytest.raises(ClaimImpossible, match="Shorten the ids"):
        claim_file.write(tmp_path / "x", ["i" * 1000], rows(1), META)


def test_checkpoints_are_decoded_and_other_bytes_are_refused() -> None:
    batches = {3: rows(2), 4: rows(1)}
    found = claim_file.decode_checkpoint(claim_file.encode_checkpoint(batches))
    assert found.keys() == batches.keys()
    assert all(np.array_equal(found[number], batches[number]) for number in batches)
    with pytest.raises(ValueError, match="not a checkpoint"):
        claim_file.decode_checkpoint(b"something else")


def test_equal_bytes_mean_equal_hashes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        claim_file.write(tmp_path / name, ["a"], rows(1), META)
    one, two = (hashlib.sha256((tmp_path / n).read_bytes()).hexdigest() for n in ("one", "two"))
    assert one == two
