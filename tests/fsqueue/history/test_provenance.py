"""What made each output is recorded with it, read back by commands, and outlives its worker."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import fsqueue
from fsqueue.history.provenance import Provenance, Provenances, digest, provenance
from fsqueue.pool.layout import State
from fsqueue.pool.settings import PoolDirectory
from fsqueue.records.checksums import Checksums, Content
from fsqueue.worker.attempts.provenance import Surroundings, cpu_model, loaded_versions
from fsqueue.worker.settings import WorkerSettings
from tests.support.nvml.fake_driver import Driver
from tests.support.planning import make_inputs, names_in, plan_command
from tests.support.processes import fsqueue as run_fsqueue

ARGV = ["cat", "{input}"]


@pytest.fixture
def pool(tmp_path: Path) -> PoolDirectory:
    return plan_command(tmp_path / "pool", make_inputs(tmp_path / "in", 3), ARGV)


def rows(pool: PoolDirectory) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = json.loads(run_fsqueue("outputs", pool.root, "--json").stdout)[
        "outputs"
    ]
    return listed


def test_each_output_has_one_record_of_what_made_it(pool: PoolDirectory) -> None:
    assert run_fsqueue("work", pool.root).returncode == 0
    for row in rows(pool):
        made = row["provenance"]
        assert (made["attempt"], made["returns"]) == (0, 0)
        assert (made["exit_status"], made["handler"]) == (0, "command")
        assert made["program"] == ["cat", row["inputs"][0]]
        assert made["bytes"] == os.path.getsize(row["output"])
        assert made["host"] == os.uname().nodename and made["cpus"] == os.cpu_count()
        assert made["fsqueue"] == fsqueue.__version__
        assert made["python"] == sys.version.split()[0] and "click" in made["versions"]
        assert made["seconds"] >= 0 and made["finished_at"] > 1e9 and made["gpu"] == {}
    assert len({row["provenance"]["options_sha256"] for row in rows(pool)}) == 1
    one = rows(pool)[0]
    explained = json.loads(run_fsqueue("explain", pool.root, one["id"], "--json").stdout)
    assert explained["provenance"] == one["provenance"]
    shown = run_fsqueue("explain", pool.root, one["id"]).stdout
    assert f"program, exit status 0: cat {one['inputs'][0]}" in shown
    assert f"made by {one['provenance']['worker']}" in shown


def test_r78_a_worker_writes_its_facts_once_and_a_line_for_each_output(pool: PoolDirectory) -> None:
    assert run_fsqueue("work", pool.root).returncode == 0
    (path,) = Path(pool.checksums()).iterdir()
    kinds = [next(iter(json.loads(line))) for line in path.read_text().splitlines()]
    assert kinds == ["worker", "versions", "output", "output", "output"]


def test_r78_it_stays_when_workers_are_forgotten(pool: PoolDirectory) -> None:
    assert run_fsqueue("work", pool.root).returncode == 0
    before = rows(pool)
    cleaned = run_fsqueue("clean", pool.root, "--all")
    assert cleaned.returncode == 0, cleaned.stderr
    assert not any(os.listdir(pool.directory(name)) for name in ("status", "events"))
    assert rows(pool) == before and before[0]["provenance"]["host"]


def test_from_python_it_is_read_where_it_is_asked_for(pool: PoolDirectory) -> None:
    assert run_fsqueue("work", pool.root).returncode == 0
    opened = fsqueue.open_pool(pool.root)
    names = {name.id: name for name in names_in(pool, State.DONE)}
    for output in opened.outputs(provenance=True):
        assert output.provenance == provenance(pool, names[output.id])
    assert all(output.provenance is None for output in opened.outputs())


def test_the_gpu_and_its_driver_are_named(tmp_path: Path, pool: PoolDirectory) -> None:
    driver = Driver(tmp_path)
    driver.add(0, "NVIDIA A100-SXM4-80GB", "GPU-5a1e-7", gib=80)
    driver.set("*", driver="550.54.15")
    env = driver.environ | {"CUDA_VISIBLE_DEVICES": "0"}
    assert run_fsqueue("work", pool.root, env=env).returncode == 0
    found = {"name": "NVIDIA A100-SXM4-80GB", "uuid": "GPU-5a1e-7", "driver": "550.54.15"}
    assert [row["provenance"]["gpu"] for row in rows(pool)] == [found] * 3
    shown = run_fsqueue("explain", pool.root, rows(pool)[0]["id"]).stdout
    assert ": NVIDIA A100-SXM4-80GB (GPU-5a1e-7, driver 550.54.15), " in shown


def test_outputs_of_earlier_versions_have_what_their_records_hold(pool: PoolDirectory) -> None:
    assert run_fsqueue("work", pool.root).returncode == 0
    (path,) = Path(pool.checksums()).iterdir()
    records = [json.loads(line) for line in path.read_text().splitlines()][2:]
    kept = [{key: record[key] for key in ("output", "bytes", "crc32")} for record in records]
    path.write_text("".join(f"{json.dumps(each)}\n" for each in kept[:2]))
    made = [row["provenance"] for row in rows(pool)]
    assert sum(each is None for each in made) == 1, "nothing was recorded"
    (old, _) = filter(None, made)
    assert old["bytes"] > 0 and old["program"] and not old["host"]
    assert (old["attempt"], old["seconds"], old["finished_at"]) == (None, None, None)
    assert run_fsqueue("check", pool.root, "--deep").returncode == 0
    assert run_fsqueue("explain", pool.root, rows(pool)[0]["id"]).returncode == 0


def test_the_newest_record_of_an_output_that_was_made_again_counts(pool: PoolDirectory) -> None:
    output = "a-0123456789ab.out"
    for writer, t in (("vm-1-aaaaaa", 20.0), ("vm-2-bbbbbb", 10.0)):
        records = Checksums(pool, writer, lambda writer=writer: {"worker": {"host": writer}})
        records.record(output, Content(1, "00000000"), t=t)
        records.close()
    found = Provenances(pool).of(output, fsqueue.Handler(), {}, {})
    assert found is not None and found.host == "vm-1-aaaaaa"


@pytest.mark.parametrize(
    "line",
    [
        b'{"worker":[]}',
        b'{"worker":{"host":1,"gpu":[],"cpus":"x"}}',
        b'{"worker":' + b"[" * 5000,
        b'{"versions":{"a":1}}',
        b'{"versions":"\xff"}',
    ],
)
def test_lines_that_make_no_sense_say_nothing(pool: PoolDirectory, line: bytes) -> None:
    record = b'{"output":"a-0123456789ab.out","bytes":1,"crc32":"00000000","t":"x","attempt":[]}'
    Path(pool.checksums()).mkdir()
    Path(pool.checksums("vm-1-aaaaaa")).write_bytes(line + b"\n" + record + b"\n")
    found = Provenances(pool).of("a-0123456789ab.out", fsqueue.Handler(), {}, {})
    assert found is not None
    assert asdict(found) == asdict(
        Provenance("vm-1-aaaaaa", bytes=1, crc32="00000000", options_sha256=digest({}),
                   finished_at=0.0)
    )  # fmt: skip


def test_versions_are_those_of_what_is_imported_and_new_ones_are_noticed() -> None:
    assert "pytest" in loaded_versions() and "json" not in loaded_versions()
    surroundings = Surroundings(WorkerSettings())
    first, second = surroundings.facts(), surroundings.facts()
    assert all(first[key] is second[key] for key in ("worker", "versions"))
    sys.modules["imported_late"] = type(sys)("imported_late")
    sys.modules["imported_late"].__dict__["__version__"] = "1.2"
    try:
        assert surroundings.facts()["versions"]["imported_late"] == "1.2"
    finally:
        del sys.modules["imported_late"]


def test_the_cpu_has_a_name_here() -> None:
    assert cpu_model() or not Path("/proc/cpuinfo").exists()


def test_a_claim_whose_handler_is_not_installed_here_keeps_its_record(pool: PoolDirectory) -> None:
    assert run_fsqueue("work", pool.root).returncode == 0
    name = names_in(pool, State.DONE)[0]
    path = Path(pool.owned(State.DONE, name))
    data = path.read_bytes()
    path.chmod(0o600)
    path.write_bytes(data.replace(b'"command"', b'"elsewhere"', 1))
    found = provenance(pool, name)
    assert found is not None and found.host == os.uname().nodename
    assert (found.handler, found.program, found.exit_status) == ("elsewhere", (), None)
