"""How the engine keeps launches in flight, and handles device errors, on a simulated device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from embed.engine.batching import Tokenized
from embed.engine.device import Cpu
from embed.engine.devices import choose_device
from embed.engine.engine import PATIENCE, Engine, use_threads
from embed.models.conventions.convention import LAST, PLAIN, Convention, Layers, Mode
from embed.models.conventions.pooling import Pooler
from embed.models.esm2 import network as esm2
from embed.models.packed.encoder import PackedEncoder
from embed.models.packed.layout import Frame
from embed.models.packed.pack import Pack
from fsqueue import ClaimFailed, ClaimImpossible, NodeTrouble, NotSupportedError, WorkerBroken
from tests.support.simulated_device import SimulatedDevice

MEAN = Pooler(PLAIN)
pytestmark = pytest.mark.usefixtures("one_thread")


class Lengths(PackedEncoder):
    """An encoder whose states are the lengths, with room for so many tokens."""

    width, head = 1, 8
    device, dtype = torch.device("cpu"), torch.float32
    frame = Frame((0,), (1,), 256)

    def __init__(self, room: int = 10**9, error: Exception | None = None) -> None:
        self.room = room
        self.error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        self.calls: list[int] = []

    def states(self, pack: Pack, layers: Layers = LAST) -> torch.Tensor:
        self.calls.append(pack.layout.tokens)
        if pack.layout.tokens > self.room:
            raise self.error
        return (pack.bounds.diff() - 2)[pack.sequence].float()[:, None]


def batch(*lengths: int) -> list[Tokenized]:
    return [Tokenized(row, bytes(length)) for row, length in enumerate(lengths)]


def ignore(_text: str) -> None:
    pass


# ---- memory ----


@pytest.mark.parametrize("lag", [0, 2])
def test_out_of_memory_halves_the_budget_repeats_the_batch_and_remembers(lag: int) -> None:
    encoder, warnings = Lengths(room=30), []  # type: ignore[var-annotated]
    device = SimulatedDevice(lag=lag)
    engine = Engine(encoder, MEAN, device)
    rows = engine.embed(batch(18, 18, 8, 8, 8), warnings.append)
    assert np.array_equal(rows[:, 0], [18, 18, 8, 8, 8])
    assert encoder.calls == [70, 20, 30, 20]  # 70 do not fit; then no batch above 35
    assert len(warnings) == device.released == 1
    assert engine.embed(batch(18, 18), warnings.append)[:, 0].tolist() == [18, 18]
    assert encoder.calls[4:] == [20, 20]
    assert len(warnings) == 1


def test_memory_that_another_process_gave_back_is_used_again() -> None:
    encoder, warnings = Lengths(room=30), []  # type: ignore[var-annotated]
    engine = Engine(encoder, MEAN, Cpu())
    engine.embed(batch(18, 18), warnings.append)
    encoder.room = 1000
    for _ in range(4 * PATIENCE):
        engine.embed(batch(18, 18), warnings.append)
    assert encoder.calls[-1] == 40, "both at once"
    assert len(warnings) == 1


def test_a_single_sequence_that_does_not_fit_fails_its_claim_with_advice() -> None:
    engine = Engine(Lengths(room=30), MEAN, SimulatedDevice())
    with pytest.raises(ClaimFailed, match="--max-residues"):
        engine.embed(batch(90, 5), ignore)


@pytest.fixture(scope="module")
def encoder(tiny_model: Path) -> PackedEncoder:
    return esm2.load(str(tiny_model), "float32", torch.device("cpu"))


@pytest.fixture(scope="module")
def batches() -> list[list[Tokenized]]:
    rng = np.random.default_rng(3)
    lengths = [[60, 55, 20], [19, 19, 18, 7], [70], [6, 5, 5, 3, 2, 1], [30, 12]]
    return [
        [Tokenized(row, bytes(rng.integers(4, 24, n).tolist())) for row, n in enumerate(each)]
        for each in lengths
    ]


@pytest.mark.parametrize(("capability", "lag"), [(None, 0), (None, 1), (None, 9), ((7, 5), 2)])
def test_memory_that_runs_out_anywhere_changes_no_result(
    encoder: PackedEncoder,
    batches: list[list[Tokenized]],
    capability: tuple[int, int] | None,
    lag: int,
) -> None:
    """Whichever allocation of all those of five batches fails."""
    plain = Engine(encoder, MEAN, Cpu())
    expected = [plain.embed(each, pytest.fail) for each in batches]
    fails_at, failed = 0, True
    while failed:
        fails_at += 1
        device = SimulatedDevice(lag=lag, fails_at=fails_at, capability=capability)
        engine, warnings = Engine(encoder, MEAN, device), []  # type: ignore[var-annotated]
        found = list(engine.run(batches, warnings.append))
        assert [each for each, _ in found] == batches
        for (_, rows), exact in zip(found, expected, strict=True):
            np.testing.assert_allclose(rows, exact, atol=1e-5)
        failed = device.allocations >= fails_at
        assert len(warnings) == failed
    assert fails_at > 5 * 2 * 10, "five batches, two layers"


# ---- in flight ----


def test_three_launches_are_in_flight_and_buffers_are_used_again_only_after_theirs(
    encoder: PackedEncoder, batches: list[list[Tokenized]]
) -> None:
    plain = Engine(encoder, MEAN, Cpu())
    device = SimulatedDevice(lag=9)
    engine = Engine(encoder, MEAN, device)
    taken: list[int] = []

    def source() -> Iterator[list[Tokenized]]:
        for number, each in enumerate(batches * 4):
            taken.append(number)
            yield each

    for number, (each, rows) in enumerate(engine.run(source(), pytest.fail)):
        assert np.array_equal(rows, plain.embed(each, pytest.fail))
        assert len(taken) <= number + device.ahead
    assert device.in_flight_max == device.ahead == 3
    storages = {launch.buffer.untyped_storage().data_ptr() for launch in device.launches}
    assert len(device.launches) == 20 and len(storages) <= 6, "buffers are used again"


def test_a_device_that_reads_late_notices_a_buffer_that_was_used_too_early() -> None:
    """The simulation itself: what it is for would be seen."""
    device = SimulatedDevice(lag=1)
    buffer = device.staging(4)
    launch = device.launch(buffer, lambda data: data.float())
    buffer.fill_(1)
    with pytest.raises(AssertionError, match="before its launch ended"):
        launch.rows()


def test_a_cpu_computes_a_batch_when_it_is_asked_for(
    encoder: PackedEncoder, batches: list[list[Tokenized]]
) -> None:
    taken = []

    def source() -> Iterator[list[Tokenized]]:
        for each in batches:
            taken.append(each)
            yield each

    found = Engine(encoder, MEAN, Cpu()).run(source(), pytest.fail)
    for number in range(len(batches)):
        next(found)
        assert len(taken) == number + 1


def test_where_the_time_goes_is_counted(
    encoder: PackedEncoder, batches: list[list[Tokenized]]
) -> None:
    """While the caller works with the rows, no time passes for the engine."""
    engine = Engine(encoder, MEAN, SimulatedDevice())
    for _ in engine.run(batches, pytest.fail):
        pass
    usage = engine.take_usage()
    lengths = [one.tokens for each in batches for one in each]
    assert (usage.tokens, usage.pairs) == (sum(lengths), sum(n * n for n in lengths))
    assert 0 < usage.feed_s < usage.seconds and usage.computing_s > 0
    assert engine.take_usage().tokens == 0


def test_a_cpu_that_computes_while_it_launches_is_not_fed_meanwhile(encoder: PackedEncoder) -> None:
    engine = Engine(encoder, MEAN, Cpu())
    for _ in engine.run([batch(400, 400, 400)] * 3, pytest.fail):
        pass
    usage = engine.take_usage()
    assert usage.feed_s < usage.computing_s < usage.seconds
    assert usage.feed_s + usage.computing_s <= usage.seconds * 1.001


def test_which_kernel_ran_on_which_card_is_known(encoder: PackedEncoder) -> None:
    engine = Engine(encoder, MEAN, SimulatedDevice(capability=(7, 5)))
    assert engine.provenance() == {"device": "NVIDIA Simulated", "attention": "padded"}
    assert not Engine(encoder, MEAN, Cpu()).provenance(), "as in outputs of former versions"


def test_rows_per_token_come_back_with_their_batch(
    encoder: PackedEncoder, batches: list[list[Tokenized]]
) -> None:
    pooler = Pooler(Convention((Mode.PER_TOKEN,)))
    engine = Engine(encoder, pooler, SimulatedDevice(fails_at=40))
    for each, rows in engine.run(batches, ignore):
        assert len(rows) == sum(len(one.ids) for one in each)


# ---- errors ----


@pytest.mark.parametrize("lag", [0, 2])
@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("CUDA error: device-side assert triggered", WorkerBroken),
        ("CUDA error: unspecified launch failure", WorkerBroken),
        ("CUDA error: uncorrectable ECC error encountered", NodeTrouble),
        ("CUDA error: all CUDA-capable devices are busy or unavailable", NodeTrouble),
        ("CUDA error: no kernel image is available for execution", NotSupportedError),
    ],
)
def test_an_error_of_the_device_is_raised_as_what_it_means_early_or_late(
    message: str, kind: type[Exception], lag: int
) -> None:
    device = SimulatedDevice(lag=lag, fails_at=1, error=lambda: RuntimeError(message))
    with pytest.raises(kind, match=message[12:30]):
        Engine(Lengths(), MEAN, device).embed(batch(5), ignore)


def test_any_other_error_is_not_hidden() -> None:
    encoder = Lengths(room=0, error=RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        Engine(encoder, MEAN, SimulatedDevice()).embed(batch(5), ignore)


def test_what_a_model_cannot_take_is_refused_before_it_reaches_the_device() -> None:
    encoder, device = Lengths(), SimulatedDevice()
    engine = Engine(encoder, MEAN, device)
    encoder.frame = Frame((0,), (1,), 30, positions=12)
    with pytest.raises(ClaimImpossible, match="has the token 30, and the model has embeddings for"):
        engine.embed([Tokenized(0, bytes([4, 30]))], ignore)
    with pytest.raises(ClaimImpossible, match="13 tokens, and the model has positions for 12"):
        engine.embed(batch(11), ignore)
    assert not device.launches
    assert len(engine.embed([Tokenized(0, bytes([29] * 10))], ignore)) == 1


# ---- devices ----


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
    assert choose_device(pytest.fail).place.type == kind


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
    assert choose_device(warnings.append).place.type == "cpu"
    assert "Install a CUDA build" in warnings[0]


def test_a_cpu_that_only_emulates_a_precision_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[str] = []
    monkeypatch.setattr("embed.engine.device.has_half_instructions", lambda _dtype: False)
    Cpu().check("float32", warnings.append)
    assert not warnings
    Cpu().check("bfloat16", warnings.append)
    assert "no instructions for bfloat16" in warnings[0]
