"""A model in host memory whose layers visit a device: the same numbers, one layer at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    DebertaV2Config,
    DebertaV2Model,
    EsmConfig,
    EsmModel,
    masking_utils,
)

from embed.engine.batching import Tokenized
from embed.engine.engine import Engine
from embed.models import families
from embed.models.conventions.convention import Convention, Layers, Mode
from embed.models.conventions.pooling import Pooler
from embed.models.dnabert.network import DnabertEncoder
from embed.models.dnabert.shape import DnabertShape
from embed.models.esm2.network import Esm2Encoder
from embed.models.generic.network import GenericEncoder
from embed.models.generic.streamed_modules import stream_modules
from embed.models.packed.encoder import PackedEncoder
from embed.models.packed.kernels import Kernel
from embed.models.packed.pack import Pack
from embed.models.packed.streamed import NotStreamed, Streamed
from tests.support import fake_cuda, generic_models
from tests.support.dnabert import write_model as write_dnabert
from tests.support.meta_device import META, MetaDevice
from tests.support.simulated_device import SimulatedDevice

CPU = torch.device("cpu")
LENGTHS = (40, 17, 17, 5, 1)
MIXED = Layers((0, 1, 2))

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[str, Path]:
    """A small model of each family, and of several architectures of the third."""
    root = tmp_path_factory.mktemp("streamed")
    write_dnabert(root / "dnabert")
    names = ("bert", "modernbert", "t5", "gpt2", "nucleotides")
    generic = {name: generic_models.write_model(root / name, name) for name in names}
    return {"esm2": tiny_model, "dnabert": root / "dnabert", **generic}


def family_of(name: str) -> str:
    return name if name in ("esm2", "dnabert") else "auto"


def some_ids(encoder: PackedEncoder, lengths: Sequence[int] = LENGTHS) -> list[Any]:
    rng = np.random.default_rng(3)
    limit = encoder.frame.vocabulary
    made = [rng.integers(6, min(24, limit), size) for size in lengths]
    return [ids.astype(np.uint8 if limit <= 256 else np.int16) for ids in made]


def names() -> list[str]:
    return ["esm2", "dnabert", "bert", "modernbert", "t5", "gpt2", "nucleotides"]


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("kernel", [Kernel.RUNS, Kernel.PADDED])
def test_layers_that_visit_give_the_bytes_of_layers_that_stay(
    folders: dict[str, Path], name: str, kernel: Kernel
) -> None:
    stays, _ = families.load(family_of(name), str(folders[name]), "float32", CPU)
    visits, _ = families.load(family_of(name), str(folders[name]), "float32", Streamed(CPU))
    if not isinstance(stays, GenericEncoder):
        assert any(isinstance(each, type(visits._embed)) for each in visits._layers)
    packs = [Pack.of([ids], stays.frame, CPU, kernel) for ids in some_ids(stays)]
    if kernel is Kernel.RUNS and isinstance(stays, GenericEncoder):
        assert stays.packs(kernel) == visits.packs(kernel)
        if not stays.packs(kernel):
            return
    with torch.inference_mode():
        for layers in (Layers(), MIXED):
            found = visits.states_of(packs, layers)
            for pack, states in zip(packs, found, strict=True):
                assert torch.equal(states, stays.states(pack, layers))


@pytest.mark.parametrize("name", ["esm2", "dnabert", "bert"])
@pytest.mark.parametrize("mode", [Mode.MEAN, Mode.MAX, Mode.PER_TOKEN])
def test_sequences_that_are_launched_together_but_apart_get_the_bytes_of_each_alone(
    folders: dict[str, Path], name: str, mode: Mode
) -> None:
    device = SimulatedDevice(capability=None if name == "dnabert" else (7, 5))  # heads of 4
    folder, family = str(folders[name]), family_of(name)
    stays, _ = families.load(family, folder, "float32", CPU)
    visits, _ = families.load(family, folder, "float32", Streamed(CPU))
    pooler = Pooler(Convention((mode,)), (1, 1))
    batch = [Tokenized(n, ids) for n, ids in enumerate(some_ids(stays))]
    together = Engine(visits, pooler, device, apart=True).embed(batch, pytest.fail)
    assert len(device.launches) == 1
    alone = Engine(stays, pooler, device)
    expected = [alone.embed([one], pytest.fail) for one in batch]
    assert together.tobytes() == np.concatenate(expected).tobytes()


# ---- memory ----


def esm2() -> Esm2Encoder:
    config = EsmConfig(
        vocab_size=33, mask_token_id=32, pad_token_id=1, hidden_size=64, num_hidden_layers=6,
        num_attention_heads=4, intermediate_size=256, position_embedding_type="rotary",
        token_dropout=True,
    )  # fmt: skip
    return Esm2Encoder(EsmModel(config, add_pooling_layer=False).eval(), Streamed(META))


def dnabert() -> DnabertEncoder:
    shape = DnabertShape(100, 96, 6, 12, 384, 2, 1e-12)
    weights = {name: torch.rand(size) for name, size in shape.tensors().items()}
    return DnabertEncoder(shape, weights, Streamed(META))


def bert(place: torch.device = META) -> GenericEncoder:
    config = BertConfig(vocab_size=300, hidden_size=64, num_hidden_layers=6, num_attention_heads=4,
                        max_position_embeddings=50,
                        intermediate_size=256, attn_implementation="eager")  # fmt: skip
    model = BertModel(config, add_pooling_layer=False).eval()
    stream_modules(model, place)
    return GenericEncoder(model, config, (np.array([2]), np.array([3])), None, place)


def read_no_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let transformers apply each mask without looking at it first: here it has no numbers."""
    for name in ("_ignore_bidirectional_mask_sdpa", "_ignore_causal_mask_sdpa"):
        monkeypatch.setattr(masking_utils, name, lambda *_: False)


@pytest.mark.parametrize("make", [esm2, dnabert, bert])
@pytest.mark.parametrize("count", [1, 5])
def test_the_device_never_holds_two_layers_and_nothing_afterwards(
    make: Callable[[], Any], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_no_masks(monkeypatch)
    encoder, device = make(), MetaDevice()
    engine = Engine(encoder, Pooler(Convention()), device, apart=True)
    batch = [Tokenized(n, ids) for n, ids in enumerate(some_ids(encoder, [40] * count))]
    with fake_cuda.numbers(device):
        engine.embed(batch, pytest.fail)
    (record,) = device.memory
    largest, others, tensors = sizes(encoder)
    assert largest <= record.copied_peak <= largest + others < 1.5 * largest
    assert record.held_bytes() == 0
    passes = count if make is bert else 1  # its layers are copied for each sequence
    made_here = 0 if make is bert else 1  # the rotations, or the slopes of ALiBi
    assert record.copies == passes * tensors + made_here


def sizes(encoder: Any) -> tuple[int, int, int]:
    """The bytes of the largest layer or table, those that are there during the whole pass, and how
    many tensors there are."""
    if isinstance(encoder, GenericEncoder):
        model = encoder._model
        layers = [*model.encoder.layer, model.embeddings.word_embeddings]
        parts = [list(each.parameters()) for each in layers]
        whole = [*model.parameters(), *model.buffers()]
        others = bytes_of(whole) - sum(map(bytes_of, parts))
        return max(map(bytes_of, parts)), others, len(whole)
    streamed = [encoder._embed, *encoder._layers]
    streamed += [encoder._norm_after] if isinstance(encoder, Esm2Encoder) else []
    parts = [list(each._weights.values()) for each in streamed]
    return max(map(bytes_of, parts)), 64 * 16 * 8, sum(map(len, parts))  # the rotations


def bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    return sum(each.numel() * each.element_size() for each in tensors)


def test_layers_are_put_back_when_the_model_fails() -> None:
    encoder = bert(CPU)
    before = {name: id(each) for name, each in encoder._model.named_parameters()}
    last = encoder._model.encoder.layer[-1].output
    last.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        encoder.hidden(some_ids(encoder), kernel=Kernel.PADDED)
    assert {name: id(each) for name, each in encoder._model.named_parameters()} == before


@pytest.mark.parametrize("name", ["bert", "modernbert", "nomic", "t5", "gpt2", "nucleotides"])
def test_models_of_transformers_find_their_weights_on_the_device(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_no_masks(monkeypatch)
    folder = str(generic_models.write_model(tmp_path / name, name))
    families.load("auto", folder, "float32", Streamed(META))


def test_a_table_that_is_used_without_calling_its_module_is_on_the_device() -> None:
    """DeBERTa's positions relative to each other are."""
    config = DebertaV2Config(
        vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48, relative_attention=True, position_buckets=8,
        norm_rel_ebd="layer_norm", pos_att_type=["p2c", "c2p"], pad_token_id=0,
    )  # fmt: skip
    model = DebertaV2Model(config).eval()
    stream_modules(model, META)
    during: list[torch.device] = []
    encoder = model.encoder
    encoder.layer[0].register_forward_pre_hook(
        lambda *_: during.append(encoder.rel_embeddings.weight.device)
    )
    GenericEncoder(model, config, (np.array([1]), np.array([2])), None, META).try_streamed()
    assert set(during) == {META}
    assert encoder.rel_embeddings.weight.device == CPU, "afterwards"


def test_a_model_whose_code_does_not_allow_it_is_refused() -> None:
    encoder = bert()
    encoder._model.encoder.register_forward_pre_hook(lambda *_: torch.ones(1).item() + None)
    with pytest.raises(NotStreamed, match="the layers of a bert cannot be copied to the device"):
        encoder.try_streamed()
