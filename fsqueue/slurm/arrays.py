"""Decide which SLURM arrays of workers a pool needs on this cluster: one for each model of GPU.

A task's index modulo the number of spools is the position of its spool. So the arrays of several
models divide the indices among them, and submitting again asks for the same ones.

The cluster is asked which types of GPU it has, and how long an array may be.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from fsqueue.errors import UsageError
from fsqueue.gpu.weights import short_name
from fsqueue.pool.settings import Spool
from fsqueue.scheduling.gpu_spec import SpoolSpec
from fsqueue.slurm.allocation import output_of

ARRAY_MAX: Final = 1001
"""SLURM's own default for MaxArraySize: every index must be below it."""

_COUNTED: Final = re.compile(r"[0-9]+[KMGkmg]?")


@dataclass(frozen=True, slots=True)
class Cluster:
    """What is known about a cluster. `gpu_types` has "" for untyped GPUs; None if unknown."""

    array_max: int = ARRAY_MAX
    gpu_types: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class PlannedWorker:
    """One worker to start: on which GPU model, and the position of its spool."""

    model: str
    spool_position: int


@dataclass(frozen=True, slots=True)
class Array:
    """One array of workers to submit."""

    model: str
    gres: str
    """The --gres option, such as gpu:rtx4090:1; "" for workers without a GPU."""
    indices: tuple[int, ...]

    @property
    def index_text(self) -> str:
        """The indices in sbatch's notation."""
        return index_text(self.indices)


# ---- the cluster ----


def this_cluster() -> Cluster:
    """Ask SLURM about this cluster; what it does not answer stays unknown."""
    config, nodes = (
        output_of(["scontrol", "show", "config"]),
        output_of(["sinfo", "--noheader", "--format=%G"]),
    )
    types = None if nodes is None else parse_gpu_types(nodes)
    return Cluster(parse_array_max(config or ""), types)


def parse_array_max(config: str) -> int:
    """Parse MaxArraySize from the output of `scontrol show config`."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", config, re.MULTILINE)
    return int(found[1]) if found else ARRAY_MAX


def parse_gpu_types(nodes: str) -> frozenset[str]:
    """Parse the GPU types from the output of `sinfo --format=%G`; "" for untyped GPUs."""
    types = set()
    for entry in re.sub(r"\([^)]*\)", "", nodes).replace("\n", ",").split(","):
        name, *rest = entry.strip().split(":")
        if name == "gpu":
            types.add("" if not rest or _COUNTED.fullmatch(rest[0]) else rest[0])
    return frozenset(types)


def gres_for(model: str, cluster: Cluster) -> str | None:
    """Return the --gres option for one GPU of a model; None if the cluster has none."""
    if model == "cpu":
        return ""
    if cluster.gpu_types is None:
        return f"gpu:{model.lower().replace(' ', '')}:1"  # unknown cluster: the usual spelling
    names = {model, re.sub(r" \d+GB$", "", model)}
    alike = [kind for kind in cluster.gpu_types if short_name(kind.replace("_", " ")) in names]
    if alike:
        return f"gpu:{min(alike)}:1"
    return "gpu:1" if cluster.gpu_types == {""} else None


# ---- which arrays ----


def workers_for(
    spools: Sequence[Spool], *, count: int | None = None, specs: Sequence[SpoolSpec] | None = None
) -> list[PlannedWorker]:
    """Return the workers to start: `count`, or one on each of `specs`; else one per spool."""
    if not spools:
        raise UsageError("the pool has no spools; plan something first: fsqueue plan --help")
    if specs is None:
        wanted = len(spools) if count is None else count
        positions = [number % len(spools) for number in range(wanted)]
        return [PlannedWorker(spools[position].model, position) for position in positions]
    workers: list[PlannedWorker] = []
    taken: Counter[str] = Counter()
    for spec in specs:
        own = [position for position, spool in enumerate(spools) if spool.model == spec.model]
        positions = own or list(range(len(spools)))
        workers.append(PlannedWorker(spec.model, positions[taken[spec.model] % len(positions)]))
        taken[spec.model] += 1
    return workers


def arrays_for(
    workers: Sequence[PlannedWorker], spools: int, cluster: Cluster
) -> tuple[list[Array], list[str]]:
    """Return the arrays for these workers, and the models that the cluster lacks."""
    if spools > cluster.array_max:
        raise UsageError(
            f"the pool has {spools} spools, and an array here has {cluster.array_max} indices "
            f"(MaxArraySize): plan for fewer, larger spools."
        )
    arrays, absent = [], []
    for model in dict.fromkeys(worker.model for worker in workers):
        gres = gres_for(model, cluster)
        if gres is None:
            absent.append(model)
            continue
        positions = [worker.spool_position for worker in workers if worker.model == model]
        for indices in _windows(positions, spools, cluster.array_max):
            arrays.append(Array(model, gres, tuple(indices)))
    return arrays, absent


def _windows(positions: Iterable[int], spools: int, limit: int) -> list[list[int]]:
    """Return array indices for these positions, in as few arrays as the limit allows."""
    windows: list[list[int]] = []
    taken: Counter[int] = Counter()
    for position in positions:
        window, nth = divmod(taken[position], -(-(limit - position) // spools))
        taken[position] += 1
        if window == len(windows):
            windows.append([])
        windows[window].append(position + nth * spools)
    return [sorted(indices) for indices in windows]


def index_text(indices: Sequence[int]) -> str:
    """Return sorted indices in sbatch's notation: 0-7, 1-7:2, 0,3-5."""
    steps = {b - a for a, b in zip(indices, indices[1:], strict=False)}
    if len(indices) > 2 and len(steps) == 1:
        (step,) = steps
        return f"{indices[0]}-{indices[-1]}" + (f":{step}" if step > 1 else "")
    runs: list[list[int]] = []
    for index in indices:
        if runs and runs[-1][-1] == index - 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
