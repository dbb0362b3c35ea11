"""Decide which SLURM arrays of workers a pool needs on this cluster: one for each model of GPU.

A task's index, modulo the number of spools, is the place of the spool it begins with; so the arrays
of several models share all numbers out, and submitting again asks for the same ones.

What a cluster has is asked of it: the types of its GPUs, and how long an array may be.
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
from fsqueue.slurm.allocation import ask

ARRAY_MAX: Final = 1001
"""SLURM's own default for MaxArraySize: every index must be below it."""

_COUNTED: Final = re.compile(r"[0-9]+[KMGkmg]?")


@dataclass(frozen=True, slots=True)
class Cluster:
    """What a cluster says of itself. `gpu_types` has "" for GPUs without a type; None: unknown."""

    array_max: int = ARRAY_MAX
    gpu_types: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Seat:
    """One worker to be: on which GPU, and the place of the spool it begins with."""

    model: str
    place: int


@dataclass(frozen=True, slots=True)
class Array:
    """One array of workers to be submitted."""

    model: str
    gres: str
    """What to ask for, such as gpu:rtx4090:1; "" for workers without a GPU."""
    indices: tuple[int, ...]

    @property
    def index_text(self) -> str:
        """The indices in sbatch's notation."""
        return index_text(self.indices)


# ---- the cluster ----


def this_cluster() -> Cluster:
    """Ask SLURM what arrays and GPUs it has; what it does not say stays unknown."""
    config, nodes = ask(["scontrol", "show", "config"]), ask(["sinfo", "--noheader", "--format=%G"])
    types = None if nodes is None else parse_gpu_types(nodes)
    return Cluster(parse_array_max(config or ""), types)


def parse_array_max(config: str) -> int:
    """Return MaxArraySize from what `scontrol show config` prints."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", config, re.MULTILINE)
    return int(found[1]) if found else ARRAY_MAX


def parse_gpu_types(nodes: str) -> frozenset[str]:
    """Return the types of GPU from what `sinfo --format=%G` prints; "" for one without a type."""
    types = set()
    for entry in re.sub(r"\([^)]*\)", "", nodes).replace("\n", ",").split(","):
        name, *rest = entry.strip().split(":")
        if name == "gpu":
            types.add("" if not rest or _COUNTED.fullmatch(rest[0]) else rest[0])
    return frozenset(types)


def gres_for(model: str, cluster: Cluster) -> str | None:
    """Return how to ask this cluster for one GPU of a model; None if it has none."""
    if model == "cpu":
        return ""
    if cluster.gpu_types is None:
        return f"gpu:{model.lower().replace(' ', '')}:1"  # nobody to ask: the usual spelling
    names = {model, re.sub(r" \d+GB$", "", model)}
    alike = [kind for kind in cluster.gpu_types if short_name(kind.replace("_", " ")) in names]
    if alike:
        return f"gpu:{min(alike)}:1"
    return "gpu:1" if cluster.gpu_types == {""} else None


# ---- which arrays ----


def seats_for(
    spools: Sequence[Spool], *, count: int | None = None, specs: Sequence[SpoolSpec] | None = None
) -> list[Seat]:
    """Return the workers asked for: so many, or on these GPUs; else one for each spool."""
    if not spools:
        raise UsageError("the pool has no spools; plan something first: fsqueue plan --help")
    if specs is None:
        wanted = len(spools) if count is None else count
        places = [number % len(spools) for number in range(wanted)]
        return [Seat(spools[place].model, place) for place in places]
    seats: list[Seat] = []
    taken: Counter[str] = Counter()
    for spec in specs:
        own = [place for place, spool in enumerate(spools) if spool.model == spec.model]
        places = own or list(range(len(spools)))
        seats.append(Seat(spec.model, places[taken[spec.model] % len(places)]))
        taken[spec.model] += 1
    return seats


def arrays_for(
    seats: Sequence[Seat], spools: int, cluster: Cluster
) -> tuple[list[Array], list[str]]:
    """Return the arrays for these workers, and the models that this cluster does not have."""
    if spools > cluster.array_max:
        raise UsageError(
            f"the pool has {spools} spools, and an array here has {cluster.array_max} indices "
            f"(MaxArraySize): plan for fewer, larger spools."
        )
    arrays, absent = [], []
    for model in dict.fromkeys(seat.model for seat in seats):
        gres = gres_for(model, cluster)
        if gres is None:
            absent.append(model)
            continue
        places = [seat.place for seat in seats if seat.model == model]
        for indices in _windows(places, spools, cluster.array_max):
            arrays.append(Array(model, gres, tuple(indices)))
    return arrays, absent


def _windows(places: Iterable[int], spools: int, limit: int) -> list[list[int]]:
    """Return array indices that mean these places, in as few arrays as the limit allows."""
    windows: list[list[int]] = []
    taken: Counter[int] = Counter()
    for place in places:
        window, nth = divmod(taken[place], -(-(limit - place) // spools))
        taken[place] += 1
        if window == len(windows):
            windows.append([])
        windows[window].append(place + nth * spools)
    return [sorted(indices) for indices in windows]


def index_text(indices: Sequence[int]) -> str:
    """Return indices in order as sbatch reads them: 0-7, 1-7:2, 0,3-5."""
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
