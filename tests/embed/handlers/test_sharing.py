"""The outputs do not depend on which worker ran what: real workers, with every way of sharing."""

from __future__ import annotations

import hashlib
import multiprocessing
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from tests.support.processes import fsqueue

WORKERS = (1, 3)
SWITCHES = tuple(product(("--gpu-weighted", "--no-gpu-weighted"), ("", "--no-work-stealing")))
SPOOLS = ("a", "b")


def digests(pool: Path) -> dict[str, str]:
    """Return the hash of every output by name."""
    files = sorted((pool / "outputs").glob("*.safetensors"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def inputs(folder: Path, proteins: list[Path]) -> Iterator[Path]:
    """Yield a part of the real proteins: one file that is divided, two that are packed."""
    for path, records in zip(proteins[:3], (60, 6, 6), strict=True):
        part = folder / path.name
        part.write_text(">" + ">".join(path.read_text().split(">")[1 : records + 1]))
        yield part


FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["embed.engine.engine", "embed.models.esm2.network"]
)  # torch takes seconds to import


def begin(*words: object) -> multiprocessing.process.BaseProcess:
    """Start one `fsqueue WORD...` in a process that has imported torch already."""
    worker = FORKS.Process(target=run_command_line, args=([str(word) for word in words],))
    worker.start()
    return worker


def run_command_line(words: list[str]) -> None:
    from fsqueue.cli import main

    sys.argv = ["fsqueue", *words]
    main()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_weights_stealing_and_workers_change_no_byte_of_any_output(
    tmp_path: Path, tiny_model: Path, proteins: list[Path]
) -> None:
    plain = [path for path in proteins if path.suffix == ".faa"]
    files = list(inputs(tmp_path, plain))
    seen = {}
    for (weighting, stealing), workers in product(SWITCHES, WORKERS):
        pool = tmp_path / f"pool{weighting}{stealing}-{workers}"
        planned = fsqueue("plan", "embed", pool, *files, "--model", tiny_model, "--gpus",
                          "a=cpu:1,b=cpu:2", weighting)  # fmt: skip
        assert planned.returncode == 0, planned.stderr
        # Without stealing every spool needs a worker of its own.
        count = max(workers, len(SPOOLS)) if stealing else workers
        workers_started = [
            begin("work", pool, "--spool", SPOOLS[index % 2], "--steal-interval", "0.2",
                  *stealing.split())
            for index in range(count)
        ]  # fmt: skip
        for worker in workers_started:
            worker.join(120)
            assert worker.exitcode in (0, 5), worker
        assert fsqueue("check", pool).returncode == 0
        seen[pool.name] = digests(pool)
    reference = next(iter(seen.values()))
    assert len(reference) >= 8 * len(SPOOLS)
    assert all(found == reference for found in seen.values()), {
        name: sorted(set(found.items()) ^ set(reference.items()))[:2]
        for name, found in seen.items()
    }
