"""What became of an engine's time, against what its device can do."""

from __future__ import annotations

import pytest
import torch

from embed.engine.device import Cpu
from embed.engine.usage import Usage, line
from embed.models.cost import ModelShape
from tests.support.simulated_device import SimulatedDevice


def test_operations_are_counted_as_publications_count_them() -> None:
    shape = ModelShape(layers=33, width=1280, inner=5120, heads=20)
    (done,) = {Usage(tokens=325, pairs=325**2, seconds=1.0).computing(shape, 1e12, 0).teraflop}
    assert done == pytest.approx(33 * 325 * (24 * 1280**2 + 4 * 325 * 1280) / 1e12)


def test_a_share_is_of_what_the_device_would_have_reached_meanwhile() -> None:
    shape = ModelShape(layers=1, width=100, inner=400, heads=1)
    spent = Usage(1000, 0, 2.0, 0.5, 1.9).computing(shape, 2e9, 3 << 30)
    assert (spent.seconds, spent.computing_s, spent.feeding_s) == (2.0, 1.9, 0.5)
    assert spent.teraflop / spent.reach_teraflop == pytest.approx(24 * 100**2 * 1000 / 4e9)
    assert line(1000, spent) == (
        "500 tokens/s; the device computed 95% of the time, at 6% of its speed in products; 25% "
        "was spent on preparing batches; 3.0 GiB of memory at most"
    )


@pytest.mark.parametrize("device", [Cpu(), SimulatedDevice(), SimulatedDevice(lag=0)])
def test_what_a_device_reaches_is_measured_once(device: Cpu | SimulatedDevice) -> None:
    reach = device.reach("float32")
    assert reach > 1e8 and device.reach("float32") == reach


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_a_device_without_room_to_measure_it_costs_no_claim_anything(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def mm(*_: object) -> torch.Tensor:
        raise error

    monkeypatch.setattr(torch, "mm", mm)
    device = Cpu()
    assert device.reach("float32") == 0.0
    shape = ModelShape(layers=1, width=100, inner=400, heads=1)
    assert "at 0% of its speed" in line(10, Usage(10, 0, 1.0).computing(shape, 0.0, 0))
