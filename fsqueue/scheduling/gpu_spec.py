"""Parse `--gpus`: which spools a plan needs, for which models, with what weights.

    SPEC   = auto | @FILE | ENTRY,ENTRY,...
    ENTRY  = [NAME=]MODEL[:WEIGHT][xCOUNT]         4090x2,3090   a100-80gb:1.4   cpux4   left=3090

`auto` means the GPUs visible here, else one `cpu`; a FILE has one entry per line and # comments.
The n-th GPU's spool is named gpuN and the n-th CPU's cpuN, counted from 0, unless NAME= is given;
with a count, NAME becomes NAME0, NAME1, ... The machine need not have the GPUs that are named:
plans are often made on a machine without any.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from fsqueue.errors import UsageError
from fsqueue.gpu.memory import memory_gib
from fsqueue.gpu.nvml import visible_gpus
from fsqueue.gpu.weights import get_gpu_weight, known_weight, short_name
from fsqueue.pool.names import SPOOL

COUNT_MAX: Final = 4096
WEIGHT_MIN: Final = 1e-6
WEIGHT_MAX: Final = 1e6
ENTRY_MAX: Final = 160
FILE_MAX: Final = 1 << 20

_MODEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}")
_NUMBER: Final = re.compile(r"[0-9]{1,12}(?:\.[0-9]{0,12})?|\.[0-9]{1,12}")
# The x of rtx, gtx and mx never counts: rtx3090 is a card, not 3090 cards of the kind "rt".
_COUNTED: Final = re.compile(
    r"(.*?)(?<!\brt)(?<!\bgt)(?<!\bm)\s*x\s*([-+]?[0-9][0-9.]*)", re.IGNORECASE
)
_COUNT_FIRST: Final = re.compile(r"([0-9]{1,3})\s*x\s*([A-Za-z0-9].*)", re.IGNORECASE)
_LIKE: Final = "For example: --weight 4090=1.6 or --weight gpu0=1.3 or --weight @FILE"
_GOOD: Final = "For example: --gpus 4090x2,3090 or --gpus a100-80gb:1.4,left=3090 or --gpus auto"


@dataclass(frozen=True, slots=True)
class SpoolSpec:
    """One spool to plan for; `why` is where its weight comes from, for people to read."""

    name: str
    model: str
    weight: float
    why: str
    overridden: bool = False
    """Whether --weight gave the weight."""
    memory_gib: float | None = None
    """The GPU's memory, as far as it is known."""


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str | None
    model: str
    weight: float | None
    count: int
    memory_gib: float | None = None


def parse_gpus(spec: str, environ: Mapping[str, str] = os.environ) -> list[SpoolSpec]:
    """Return the spools of a SPEC, at least one; UsageError if it is wrong.

    `auto` reads CUDA_VISIBLE_DEVICES from `environ`. Models are spelled as in GPU_WEIGHTS.
    """
    spec = spec.strip()
    if spec == "auto":
        return _here(environ)
    texts = _lines(spec[1:]) if spec.startswith("@") else spec.split(",")
    if not all(text.strip() for text in texts):
        raise _refuse(spec, "has an empty entry: there is one comma too many")
    entries = [_entry(text.strip()) for text in texts]
    if not entries:
        raise _refuse(spec, "names no GPU: every line of the file is empty or a comment")
    if sum(entry.count for entry in entries) > COUNT_MAX:
        raise _refuse(spec, f"asks for more than {COUNT_MAX} spools, and each is a directory")
    return _distinct(_named(entries))


def parse_weights(texts: Sequence[str]) -> dict[str, float]:
    """Return the weights of `--weight NAME=W` and `--weight @FILE` by name; UsageError if wrong.

    A NAME is that of a spool or of a model: `gpu0=1.3`, `4090=1.6`, `cpu=0.1`.
    """
    weights: dict[str, float] = {}
    for text in texts:
        for entry in _lines(text[1:]) if text.startswith("@") else text.split(","):
            name, equals, weight = (part.strip() for part in entry.partition("="))
            if not equals or not _MODEL.fullmatch(name):
                raise UsageError(f"--weight: {_quote(entry)} is not NAME=WEIGHT. {_LIKE}")
            value = float(weight) if _NUMBER.fullmatch(weight) else 0.0
            if not WEIGHT_MIN <= value <= WEIGHT_MAX:
                raise UsageError(
                    f"--weight: {_quote(entry)}: a weight must be above 0, and 1.0 is an RTX 3090. "
                    f"{_LIKE}"
                )
            weights[name] = value
    return weights


def weighed(specs: Sequence[SpoolSpec], weights: Mapping[str, float]) -> list[SpoolSpec]:
    """Return the specs with these weights; a weight for the spool wins over one for its model.

    UsageError for a name that is neither a spool nor a model of the specs.
    """
    models = {short_name(name) or name: name for name in weights}
    unused, found = set(weights), []
    for spec in specs:
        name = spec.name if spec.name in weights else models.get(spec.model)
        if name is not None:
            unused.discard(name)
            spec = replace(spec, weight=weights[name], why="given by --weight", overridden=True)
        found.append(spec)
    unused -= {models.get(spec.model, "") for spec in specs}
    if unused:
        here = ", ".join(dict.fromkeys(word for s in specs for word in (s.name, s.model)))
        raise UsageError(
            f"--weight: {_quote(min(unused))} is neither a spool nor a model of this plan, which "
            f"has: {here}."
        )
    return found


def _here(environ: Mapping[str, str]) -> list[SpoolSpec]:
    specs = []
    for place, gpu in enumerate(visible_gpus(environ)):
        model = short_name(gpu.name, memory_gib=gpu.memory_gib)
        weight, why = _weight(model)
        where = f"GPU {gpu.index} of {socket.gethostname()}"
        why = f"{why}; {where}"
        specs.append(SpoolSpec(f"gpu{place}", model, weight, why, memory_gib=gpu.memory_gib))
    return specs or _named([_Entry(None, "cpu", None, 1)])


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(FILE_MAX)
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a path with a NUL in it
        reason = getattr(error, "strerror", None) or "it is not a text file"
        raise _refuse(f"@{path}", f"cannot be read: {reason}") from error
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [entry for line in lines if line for entry in line.split(",")]


def _entry(text: str) -> _Entry:
    if len(text) > ENTRY_MAX:
        raise _refuse(text, "is too long for the name of a GPU")
    name, equals, rest = text.partition("=")
    if not equals:
        name, rest = "", text
    elif not SPOOL.fullmatch(name.strip()):
        raise _refuse(name, "cannot be a spool's name: use up to 40 letters, digits, _ and -")
    if swapped := _COUNT_FIRST.fullmatch(rest.strip()):
        raise _refuse(rest, f"has its count first; write {swapped[2].strip()}x{swapped[1]}")
    counted = _COUNTED.fullmatch(rest)
    rest, count = (counted[1], counted[2]) if counted else (rest, "1")
    model, colon, weight = rest.partition(":")
    return _Entry(
        name.strip() or None,
        _checked_model(model.strip(), text),
        _checked_weight(weight.strip(), text) if colon else None,
        _checked_count(count, text),
        memory_gib(model),
    )


def _checked_model(model: str, text: str) -> str:
    if not _MODEL.fullmatch(model):
        raise _refuse(text, "names no model: use letters, digits, spaces and . _ -")
    if _COUNTED.fullmatch(model):
        raise _refuse(text, "has the count before the weight; write 4090:1.4x2")
    if model.lower() == "auto":
        raise _refuse(text, "cannot be part of a list: auto stands alone")
    return short_name(model) or model


def _checked_weight(text: str, entry: str) -> float:
    weight = float(text) if _NUMBER.fullmatch(text) else 0.0
    if not WEIGHT_MIN <= weight <= WEIGHT_MAX:
        raise _refuse(
            entry, f"has the weight {_quote(text)}: it must be above 0, and 1.0 is an RTX 3090"
        )
    return weight


def _checked_count(text: str, entry: str) -> int:
    count = int(text) if re.fullmatch("[0-9]{1,6}", text) else 0
    if not 1 <= count <= COUNT_MAX:
        raise _refuse(entry, f"has the count {_quote(text)}: it must be from 1 to {COUNT_MAX}")
    return count


def _weight(model: str) -> tuple[float, str]:
    known = known_weight(model) is not None
    return get_gpu_weight(model), "from the table" if known else "unknown model: the default"


def _named(entries: Sequence[_Entry]) -> list[SpoolSpec]:
    """Name each spool. The number is the GPU's position in the list, counting named ones, too."""
    specs: list[SpoolSpec] = []
    places = {"cpu": 0, "gpu": 0}
    for entry in entries:
        kind = "cpu" if entry.model == "cpu" else "gpu"
        weight, why = _weight(entry.model) if entry.weight is None else (entry.weight, "given")
        for copy in range(entry.count):
            name = f"{kind}{places[kind]}"
            if entry.name:
                name = entry.name if entry.count == 1 else f"{entry.name}{copy}"
            places[kind] += 1
            specs.append(SpoolSpec(name, entry.model, weight, why, memory_gib=entry.memory_gib))
    return specs


def _distinct(specs: list[SpoolSpec]) -> list[SpoolSpec]:
    seen: set[str] = set()
    for spec in specs:
        if not SPOOL.fullmatch(spec.name):
            raise _refuse(spec.name, "is too long for a spool's name: at most 40 characters")
        if spec.name.lower() in seen:  # some file systems ignore case
            raise _refuse(spec.name, "names two spools: give one of them another NAME=")
        seen.add(spec.name.lower())
    return specs


def _refuse(part: str, why: str) -> UsageError:
    return UsageError(f"--gpus: {_quote(part)} {why}. {_GOOD}")


def _quote(text: str) -> str:
    return repr(text) if len(text) <= 60 else f"{text[:60]!r}..."
