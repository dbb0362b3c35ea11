"""Claims on a simulated GPU: late, with batches in flight, out of memory, interrupted."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from embed.engine import devices
from embed.models import families
from embed.models.conventions.convention import LAST
from embed.models.esm2.network import Esm2Encoder
from embed.models.esm2.tokenizer import VOCABULARY
from embed.models.packed.streamed import StreamedLayer
from embed.outputs.claim_file import decode_checkpoint
from fsqueue import Interrupted, NodeTrouble
from tests.embed.conftest import Bench, fasta
from tests.support.simulated_device import SimulatedDevice

MakeBench = Callable[..., Bench]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def sequences() -> list[tuple[str, str]]:
    rng = np.random.default_rng(5)
    letters = np.array(list("ACDEFGHIKLMNPQRSTVWY"))
    return [(f"s{n}", "".join(rng.choice(letters, size))) for n, size in
            enumerate(rng.integers(3, 90, 120))]  # fmt: skip


@pytest.fixture
def simulate(monkeypatch: pytest.MonkeyPatch) -> Callable[..., SimulatedDevice]:
    def made(**how: Any) -> SimulatedDevice:
        found = SimulatedDevice(**{"capability": (7, 5), **how})
        monkeypatch.setattr(devices, "choose_device", lambda _warn: found)
        return found

    return made


@pytest.mark.parametrize("lag", [0, 1, 5])
@pytest.mark.parametrize("deterministic", [False, True])
def test_a_claim_gives_the_vectors_of_a_cpu_and_says_how_they_were_computed(
    make_bench: MakeBench,
    sequences: list[tuple[str, str]],
    simulate: Callable[..., SimulatedDevice],
    lag: int,
    deterministic: bool,
) -> None:
    plain = make_bench(tokens_per_batch=200)
    path = plain.file(fasta(sequences))
    expected = plain.embed(path)
    assert "attention" not in expected.metadata
    card = simulate(lag=lag)
    found = make_bench(tokens_per_batch=200, deterministic=deterministic).embed(path)
    np.testing.assert_allclose(found.rows, expected.rows, atol=1e-5)
    assert found.ids == expected.ids
    assert (found.metadata["attention"], found.metadata["device"]) == ("padded", card.name)
    assert card.in_flight_max == (1 if lag == 0 else min(lag, card.ahead - 1) + 1)


@pytest.mark.parametrize("fails_at", [1, 50, 333, 1500])
def test_a_claim_survives_memory_that_runs_out(
    make_bench: MakeBench,
    sequences: list[tuple[str, str]],
    simulate: Callable[..., SimulatedDevice],
    fails_at: int,
) -> None:
    plain = make_bench(tokens_per_batch=200)
    path = plain.file(fasta(sequences))
    expected = plain.embed(path).rows
    card = simulate(fails_at=fails_at)
    bench = make_bench(tokens_per_batch=200, deterministic=True)
    np.testing.assert_allclose(bench.embed(path).rows, expected, atol=1e-5)
    assert card.allocations > fails_at and card.released == 1
    assert sum("out of memory" in line for line in bench.warnings) == 1


def test_interruptions_with_batches_in_flight_change_no_byte(
    make_bench: MakeBench,
    sequences: list[tuple[str, str]],
    simulate: Callable[..., SimulatedDevice],
) -> None:
    """What is in flight is finished and saved, and checkpoints hold what their names say."""
    simulate(lag=2)
    options = {"tokens_per_batch": 200, "deterministic": True}
    bench = make_bench(**options)
    bench.options["checkpoint_seconds"] = 0
    (item,) = bench.plan(bench.file(fasta(sequences)))
    undisturbed = bench.run(item)
    bench.work(item).output.unlink()
    for name in bench.work(item).checkpoints():
        Path(f"{bench.work(item).partial}/{name}").unlink()
    stops = 0
    while not bench.work(item).output.exists():
        again = make_bench(**options)
        try:
            stopping = iter([False] * 4)
            again.handler.run(again.work(item, stop=partial(next, stopping, True)))
        except Interrupted:
            stops += 1
            for name, data in bench.work(item).checkpoints().items():
                first, last = (int(part) for part in name.split("-")[1:])
                assert sorted(decode_checkpoint(data)) == list(range(first, last + 1))
    assert stops >= 3
    assert bench.work(item).output.read_bytes() == undisturbed


def test_a_card_that_fails_in_the_middle_blames_nobody_and_what_is_done_is_kept(
    make_bench: MakeBench,
    sequences: list[tuple[str, str]],
    simulate: Callable[..., SimulatedDevice],
) -> None:
    message = "CUDA error: uncorrectable ECC error encountered"
    simulate(fails_at=800, error=lambda: RuntimeError(message))
    bench = make_bench(tokens_per_batch=200, deterministic=True)
    bench.options["checkpoint_seconds"] = 0
    (item,) = bench.plan(bench.file(fasta(sequences)))
    with pytest.raises(NodeTrouble, match="ECC"):
        bench.run(item)
    assert bench.work(item).checkpoints()


@pytest.fixture
def overflowing(tiny_model: Path, tmp_path: Path) -> Path:
    """A model that float16 cannot hold where there is a W."""
    model = tmp_path / "overflowing"
    model.mkdir()
    (model / "config.json").write_bytes((tiny_model / "config.json").read_bytes())
    weights = load_file(tiny_model / "model.safetensors")
    weights["esm.embeddings.word_embeddings.weight"][VOCABULARY.index("W"), 0] = 1e6
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    return model


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[int]]]:
    """Each pass over a float32 model: where, and the tokens of each of its sequences."""
    found: list[tuple[str, list[int]]] = []
    real = Esm2Encoder.states_of

    def states_of(self: Esm2Encoder, packs: Any, layers: Any = LAST) -> Any:
        if self.dtype == torch.float32:
            where = "card" if isinstance(self._layers[0], StreamedLayer) else "cpu"
            found.append((where, [pack.layout.tokens for pack in packs]))
        return real(self, packs, layers)

    monkeypatch.setattr(Esm2Encoder, "states_of", states_of)
    return found


def test_all_sequences_of_a_batch_that_overflow_share_one_pass_over_the_layers(
    make_bench: MakeBench,
    overflowing: Path,
    simulate: Callable[..., SimulatedDevice],
    passes: list[tuple[str, list[int]]],
) -> None:
    card = simulate()
    bench = make_bench(model=str(overflowing), dtype="float16", deterministic=True)
    inputs = [("a", "MKVLAAG"), ("w", "MKWLAAG"), ("b", "MK"), ("w2", "WWWWW"), ("w3", "KW")]
    together = bench.embed(bench.file(fasta(inputs), "all.faa")).rows
    assert passes == [("card", [9, 7, 4])]
    assert len(card.launches) == 2
    for (name, letters), row in zip(inputs, together, strict=True):
        alone = bench.embed(bench.file(fasta([(name, letters)]), f"{name}.faa")).rows[0]
        if "W" in letters:
            assert alone.tobytes() == row.tobytes(), "the same bytes as alone"


def test_a_sequence_that_does_not_fit_beside_the_model_is_computed_on_the_cpu(
    make_bench: MakeBench,
    overflowing: Path,
    simulate: Callable[..., SimulatedDevice],
    monkeypatch: pytest.MonkeyPatch,
    passes: list[tuple[str, list[int]]],
) -> None:
    long = "MKWLAAG" * 9
    inputs = [("long", long), ("w", "MKWLAAG"), ("w2", "AW")]
    full = make_bench(model=str(overflowing))
    path = full.file(fasta(inputs))
    expected = full.embed(path).rows
    passes.clear()
    real = StreamedLayer.on_device
    simulate()

    def on_device(self: StreamedLayer) -> Any:
        if passes[-1][1][0] > 50:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return real(self)

    monkeypatch.setattr(StreamedLayer, "on_device", on_device)
    bench = make_bench(model=str(overflowing), dtype="float16", deterministic=True)
    np.testing.assert_allclose(bench.embed(path).rows, expected, rtol=1e-4, atol=1e-5)
    done = [each for each in passes if each[0] == "cpu" or each[1][0] < 50]
    assert done == [("cpu", [65]), ("card", [9]), ("card", [4])]
    assert sum("using the CPU for" in line for line in bench.warnings) == 1
    tried = len(passes)
    bench.embed(bench.file(fasta([("again", long)]), "again.faa"))
    assert [where for where, _ in passes[tried:]][-1] == "cpu"


def test_what_overflows_is_computed_on_the_cpu_if_the_card_has_no_room_for_float32(
    make_bench: MakeBench,
    overflowing: Path,
    simulate: Callable[..., SimulatedDevice],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full = make_bench(model=str(overflowing))
    path = full.file(fasta([("a", "MKVLAAG"), ("w", "MKWLAAG")]))
    expected = full.embed(path).rows
    real, loads = families.load, []

    def load(family: str, folder: str, dtype: str, place: torch.device, adapter: str) -> Any:
        loads.append(dtype)
        if loads == ["float16", "float32"]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return real(family, folder, dtype, place, adapter)

    monkeypatch.setattr(families, "load", load)
    simulate()
    found = make_bench(model=str(overflowing), dtype="float16").embed(path).rows
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5)
    assert loads == ["float16", "float32", "float32"]
