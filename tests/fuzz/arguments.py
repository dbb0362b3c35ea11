"""What a user types (--gpus, --weight, durations): a valid value, or a one-line error."""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import click

from fsqueue.cli.options import Duration
from fsqueue.errors import UsageError
from fsqueue.pool.names import SPOOL
from fsqueue.scheduling.gpu_spec import COUNT_MAX, SpoolSpec, parse_gpus, parse_weights, weighed
from tests.fuzz.sandbox import directory, is_usable, pick, put, typed_errors_only

NOTHING_HERE = {"CUDA_VISIBLE_DEVICES": ""}


def _gpus(data: bytes) -> None:
    text = os.fsdecode(data)
    if text.strip().startswith("@"):
        return  # a file of the fuzzer's choice; `_gpus_file` covers files
    specs = parse_gpus(text, NOTHING_HERE)
    _check(specs)
    said = ",".join(f"{s.name}={s.model}:{s.weight:.12f}" for s in specs)
    if "auto" not in text and all(spec.weight >= 1e-6 for spec in specs):
        again = parse_gpus(said, NOTHING_HERE)
        assert [(s.name, s.model) for s in again] == [(s.name, s.model) for s in specs]
        pairs = zip(again, specs, strict=True)
        assert all(math.isclose(a.weight, b.weight, rel_tol=1e-5, abs_tol=1e-12) for a, b in pairs)


def _gpus_file(data: bytes) -> None:
    path = directory() / "gpus"
    put(str(path), data)
    _check(parse_gpus(f"@{path}", NOTHING_HERE))


def _weights(data: bytes) -> None:
    texts = [text for text in os.fsdecode(data).split("\n") if not text.startswith("@")]
    weights = parse_weights(texts)
    assert all(is_usable(weight) and weight > 0 for weight in weights.values())
    for spec in weighed(parse_gpus("4090x2,3090", NOTHING_HERE), weights):
        assert is_usable(spec.weight) and spec.weight > 0


def _duration(data: bytes) -> None:
    text = os.fsdecode(data)
    try:
        seconds = Duration().convert(text, None, None)
    except click.BadParameter as error:
        raise UsageError(error.message.replace("\n", " ")) from error
    assert is_usable(seconds) and seconds >= 0
    assert Duration().convert(f"{seconds:.6f}s", None, None) == round(seconds, 6)


def _check(specs: list[SpoolSpec]) -> None:
    assert 1 <= len(specs) <= COUNT_MAX
    assert len({spec.name.lower() for spec in specs}) == len(specs)
    for spec in specs:
        assert SPOOL.fullmatch(spec.name) and spec.model.isprintable()
        assert is_usable(spec.weight) and spec.weight > 0


READERS: tuple[Callable[[bytes], None], ...] = (_gpus, _gpus_file, _weights, _duration)
SEEDS = (
    b"\x004090x2,3090",
    b"\x00a100-80gb:1.4,left=3090x3,cpux4",
    b"\x00auto",
    b"\x00rtx3090x2:1.1",
    b"\x01# cards\n4090x2 # two\nleft=3090:1.1\n",
    b"\x024090=1.6\ngpu0=1.3,RTX 3090=0.5",
    b"\x031h30m",
    b"\x0390",
    b"\x031.5d12h3m7s",
)


def run(data: bytes) -> None:
    """Let the first byte choose what the rest is said to."""
    chosen, data = pick(data, len(READERS))
    with typed_errors_only():
        READERS[chosen](data)
