"""How the engine handles device errors; a fake encoder raises them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from embed.engine.batching import Tokenized
from embed.engine.engine import Engine, choose_device, use_threads
from embed.models.convention import LAST, PLAIN, Layers
from embed.models.pooling import Pooler
from embed.models.states import States
from fsqueue import ClaimFailed, WorkerBroken

MEAN = Pooler(PLAIN)


class SmallDevice:
    """An encoder whose states are the lengths, on a device that holds `room` tokens."""

    width = 1

    def __init__(self, room: int, error: str = "CUDA out of memory. Tried to allocate") -> None:
        self.room, self.error = room, error
        self.calls: list[int] = []

    def hidden(self, sequences: Sequence[bytes], _layers: Layers = LAST) -> States:
        tokens = sum(len(ids) + 2 for ids in sequences)
        self.calls.append(tokens)
        if tokens > self.room:
            raise torch.OutOfMemoryError(self.error)
        rows = [torch.full((len(ids) + 2, 1), float(len(ids))) for ids in sequences]
        return States(torch.cat(rows), torch.tensor([0, *map(len, rows)]).cumsum(0))


def batch(*lengths: int) -> list[Tokenized]:
    return [Tokenized(row, bytes(length)) for row, length in enumerate(lengths)]


def test_out_of_memory_halves_the_budget_repeats_the_batch_and_remembers() -> None:
    device, warnings = SmallDevice(room=30), []  # type: ignore[var-annotated]
    engine = Engine(device, MEAN)
    rows = engine.embed(batch(18, 18, 8, 8, 8), warnings.append)
    assert np.array_equal(rows[:, 0], [18, 18, 8, 8, 8])
    assert device.calls == [70, 20, 30, 20]  # 70 do not fit; then no batch above 35
    assert len(warnings) == 1
    assert engine.embed(batch(18, 18), warnings.append)[:, 0].tolist() == [18, 18]
    assert device.calls[4:] == [20, 20]
    assert len(warnings) == 1


def test_a_single_sequence_that_does_not_fit_fails_its_claim_with_advice() -> None:
    engine = Engine(SmallDevice(room=30), MEAN)
    with pytest.raises(ClaimFailed, match="--max-residues"):
        engine.embed(batch(90, 5), lambda _text: None)


@pytest.mark.parametrize(
    "error",
    [
        "CUDA error: device-side assert triggered",
        "CUDA error: unspecified launch failure",
        "CUDA error: uncorrectable ECC error encountered",
        "CUDA error: an illegal memory access was encountered",
    ],
)
def test_an_unusable_context_ends_the_worker(error: str) -> None:
    engine = Engine(SmallDevice(room=0, error=error), MEAN)
    with pytest.raises(WorkerBroken, match=error[12:30]):
        engine.embed(batch(5), lambda _text: None)


def test_any_other_error_is_not_hidden() -> None:
    engine = Engine(SmallDevice(room=0, error="shapes cannot be multiplied"), MEAN)
    with pytest.raises(RuntimeError, match="shapes"):
        engine.embed(batch(5), lambda _text: None)


def test_the_planned_threads_are_used() -> None:
    before = torch.get_num_threads()
    try:
        for count in (2, 1):
            use_threads(count)
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(before)


def test_the_first_visible_gpu_is_chosen_else_the_cpu() -> None:
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    assert choose_device(pytest.fail).type == kind


def test_a_gpu_that_this_pytorch_cannot_use_gives_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("os.path.exists", lambda path: path == "/dev/nvidia0")
    warnings: list[str] = []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    choose_device(warnings.append)
    assert not warnings  # the CPU was chosen explicitly
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert choose_device(warnings.append).type == "cpu"
    assert "Install a CUDA build" in warnings[0]
