"""What was published is recorded, and what is there is compared with it (R32, R33)."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import pytest

from fsqueue.maintenance.audit import audit_pool
from fsqueue.pool.layout import State
from fsqueue.pool.settings import PoolDirectory
from fsqueue.records.checksums import Checksums, Content, measure, read_records, verify_outputs
from tests.support.pools import make_pool, only_claim, problems, work_until_done

WORKER = "vm-1-aaaaaa"


@pytest.fixture
def pool(tmp_path: Path) -> PoolDirectory:
    """A pool with one done claim whose output is recorded."""
    pool = make_pool(tmp_path / "pool", "a.1")
    work_until_done(pool)
    record(pool, output_of(pool))
    return pool


def output_of(pool: PoolDirectory) -> Path:
    return Path(pool.output(only_claim(pool, State.DONE).id, ".txt"))


def record(pool: PoolDirectory, output: Path, content: Content | None = None) -> None:
    records = Checksums(pool, WORKER)
    records.record(output.name, content or measure(output))
    records.close()


def test_a_file_is_measured_by_its_size_and_its_crc(tmp_path: Path) -> None:
    path = tmp_path / "file"
    data = os.urandom(3_000_001)
    path.write_bytes(data)
    assert measure(path) == Content(len(data), f"{zlib.crc32(data):08x}")


def test_records_are_read_back_as_they_were_written(pool: PoolDirectory) -> None:
    output = output_of(pool)
    assert list(read_records(pool)) == [(output.name, measure(output))]


def test_a_pool_without_records_has_nothing_to_compare(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "old", "a.1")
    work_until_done(pool)
    assert not os.path.exists(pool.checksums())
    assert verify_outputs(pool, deep=True).damaged == {}
    (note,) = audit_pool(pool, deep=True).notes
    assert note.startswith("0 outputs of 1 could be compared")


def test_R32_records_that_cannot_be_written_do_not_stop_the_work(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", "a.1")
    work_until_done(pool)
    Path(pool.checksums()).write_text("in the way")
    record(pool, output_of(pool))
    assert list(read_records(pool)) == []


def test_R32_facts_that_cannot_be_found_out_do_not_stop_the_work(pool: PoolDirectory) -> None:
    def fail() -> dict[str, dict[str, str]]:
        raise AttributeError("a module of the user's")

    output = output_of(pool)
    records = Checksums(pool, WORKER, fail)
    records.record(output.name, measure(output), attempt=1)
    records.close()
    assert list(read_records(pool)) == 2 * [(output.name, measure(output))]


@pytest.mark.parametrize("data", [b"", b"half", b"more than was published, by a little"])
def test_R33_an_emptied_or_truncated_output_is_found_by_its_size(
    pool: PoolDirectory, data: bytes
) -> None:
    output = output_of(pool)
    output.write_bytes(data)
    (problem,) = problems(pool)
    assert problem.startswith(f"outputs/{output.name} has {len(data)} bytes, and ")


def test_R33_a_flipped_bit_is_found_by_its_checksum(pool: PoolDirectory) -> None:
    output = output_of(pool)
    data = bytearray(output.read_bytes())
    data[3] ^= 4
    output.write_bytes(data)
    assert problems(pool) == []
    (problem,) = audit_pool(pool, deep=True).problems
    assert f"outputs/{output.name} has the checksum" in problem


def test_R33_an_output_that_was_made_again_matches_its_newer_record(pool: PoolDirectory) -> None:
    output = output_of(pool)
    output.write_text("made again, and larger than before")
    record(pool, output)
    assert audit_pool(pool, deep=True).problems == []


def test_R33_an_output_that_is_not_there_yet_is_not_damaged(pool: PoolDirectory) -> None:
    record(pool, Path("b-0123456789ab.txt"), Content(5, "00000000"))
    assert problems(pool) == []


@pytest.mark.parametrize(
    "line",
    [
        "",
        "[]",
        '{"output":',
        '{"output":"../../etc/passwd","bytes":1,"crc32":"00000000"}',
        '{"output":"a.txt","bytes":"1","crc32":"00000000"}',
        '{"output":"a.txt","bytes":1,"crc32":1}',
        "[" * 2000,
        "\0" * 100,
    ],
)
def test_lines_that_are_no_records_are_skipped(pool: PoolDirectory, line: str) -> None:
    before = list(read_records(pool))
    with open(pool.checksums("vm-2-bbbbbb"), "w") as file:
        file.write(f"{line}\n")
    assert list(read_records(pool)) == before


def test_removing_the_events_loses_no_checksum(pool: PoolDirectory) -> None:
    for path in Path(pool.directory("events")).iterdir():
        path.unlink()
    output_of(pool).write_bytes(b"")
    assert len(problems(pool)) == 1
