"""A pool that an earlier version made is finished, checked, merged and reported by this one."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import pytest

import embed
import fsqueue
from tests.support.processes import fsqueue as command

ARCHIVE = Path(__file__).parent / "fixtures" / "pool-at-1c089d0.tar.gz"
ROOT = b"/tmp/@fixture@"

pytestmark = pytest.mark.slow


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The pool, its inputs and its model, unpacked, with every path that they hold put right."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    place = tmp_path / "@fixture@"
    for path in (path for path in place.rglob("*") if path.is_file()):
        data = path.read_bytes()
        if ROOT in data and path.suffix != ".safetensors":
            path.write_bytes(data.replace(ROOT, str(place).encode()))
    for n in range(6):  # as planned, to the nanosecond, which an archive does not keep
        os.utime(place / f"text{n}.txt", ns=(10**18 + n, 10**18 + n))
    return place


def run(*words: object, status: int = 0) -> str:
    done = command(*map(str, words))
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


def test_a_pool_of_the_version_before_the_packages_is_worked_to_its_end(place: Path) -> None:
    pool = place / "pool"
    before = {path: path.read_bytes() for path in (pool / "outputs").iterdir() if path.is_file()}
    status = json.loads(run("status", pool, "--json", status=5))
    assert [status[state] for state in ("done", "failed", "waiting", "running")] == [5, 1, 1, 1]

    (place / "text2.txt.go").touch()
    run("work", pool, "--steal-interval", "0.2", status=3)
    run("check", pool)
    outputs = {o.inputs[0].name: o.path for o in fsqueue.open_pool(pool).outputs()}
    assert sorted(outputs) == ["proteins.faa", *(f"text{n}.txt" for n in range(5))]
    for n in range(5):
        size = (place / f"text{n}.txt").stat().st_size
        assert outputs[f"text{n}.txt"].read_text().strip() == str(size)
    assert {path: path.read_bytes() for path in before} == before, "an output was replaced"

    (failed,) = fsqueue.open_pool(pool).failed()
    assert [each.attempt for each in failed.attempts] == [0, 1]
    assert failed.attempts[0].output_lines == ["no luck"]
    assert "no luck" in run("failed", pool, "--log", failed.name.id)


def test_a_pool_of_the_version_before_the_packages_is_read_by_every_command(place: Path) -> None:
    pool = place / "pool"
    run("embed", "merge", pool, place / "merged.safetensors")
    table = embed.read(str(place / "merged.safetensors"))
    assert table.ids == [f"p{n}" for n in range(12)] and table.rows.shape == (12, 32)

    endings = [line.split("\t")[11] for line in run("joblog", pool).splitlines()[1:]]
    assert sorted(endings) == ["done"] * 5 + ["failed"] * 2
    assert "text5" in run("report", pool)
    assert len(json.loads(run("workers", pool, "--json"))["workers"]) == 2
    assert "1 claim recovered" in run("recover", pool)
