"""CUDA_VISIBLE_DEVICES and the variables of SLURM: a spool that is there, or none."""

from __future__ import annotations

import os
from unittest.mock import patch

from fsqueue.gpu import nvml
from fsqueue.gpu.nvml import Card, Gpu, visible_gpus
from fsqueue.pool.settings import spool_names
from fsqueue.slurm.allocation import Allocation, facts_of, left_by_environ
from fsqueue.worker.spool_choice import choose_spool
from tests.fuzz.sandbox import is_usable, pool, spool, typed_errors_only

CARDS = [
    Card("GPU-aaaa-1", [Gpu(0, "GPU-aaaa-1", "NVIDIA GeForce RTX 4090", 24564)]),
    Card("GPU-aabb-2", [Gpu(1, "GPU-aabb-2", "NVIDIA GeForce RTX 3090", 24576)]),
    Card("GPU-cccc-3", [Gpu(2, f"MIG-{n}", "NVIDIA A100 MIG", 9856, mig=True) for n in "xy"]),
]
SEEDS = (
    b"0,1,2",
    b"GPU-aaaa,GPU-aabb-2",
    b"MIG-x,MIG-y",
    b"1,-1,0",
    b"+1st, 2\x003\x0017\x001",
    b"0\x0012\x003\x000\x001764000000\x00c",
)


def run(data: bytes) -> None:
    """Split `data` at NULs into the values of the variables."""
    values = [os.fsdecode(part) for part in data.split(b"\0")]
    names = (
        "CUDA_VISIBLE_DEVICES SLURM_ARRAY_TASK_ID SLURM_JOB_ID SLURM_RESTART_COUNT "
        "SLURM_JOB_END_TIME SLURM_CLUSTER_NAME"
    ).split()
    environ = dict(zip(names, values, strict=False))
    spool()
    # These cards stand in for a driver's: what is under test is how the variables are read.
    with patch.object(nvml, "_cards", lambda: CARDS), typed_errors_only():
        seen = visible_gpus(environ)
        known = [gpu for card in CARDS for gpu in card.gpus]
        assert all(gpu in known for gpu in seen)
        assert len({gpu.uuid for gpu in seen}) == len(seen)
        match = choose_spool(pool(), None, environ)
        assert match.spool is None or match.spool in spool_names(pool())
        assert is_usable(match.weight) and match.weight > 0
        if values[0].count("GPU-") == 1 and seen:
            assert seen[0].uuid.startswith("GPU-") or seen[0].mig
    left_s = left_by_environ(environ, 1.7e9)
    assert left_s is None or (is_usable(left_s) and left_s > 0)
    facts = facts_of(environ)
    if "SLURM_JOB_END_TIME" in environ and facts and left_s is not None:
        assert Allocation(environ).left_s() > -3600
