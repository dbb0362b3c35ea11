"""A tiny ESM-2 saved as users have one, and a way to run claims as a worker does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from embed.handlers.embed import OPTIONS, Embed
from embed.outputs.claim_file import Embeddings, read
from fsqueue import Item, Work

INV_FREQ = "esm.encoder.layer.{}.attention.self.rotary_embeddings.inv_freq"
SHAPE: dict[str, Any] = {
    "vocab_size": 33,
    "mask_token_id": 32,
    "pad_token_id": 1,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 1026,
    "position_embedding_type": "rotary",
    "token_dropout": True,
    "emb_layer_norm_before": False,
    # Ten times the usual, so that attention matters and mistakes show.
    "initializer_range": 0.2,
}


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a 2-layer ESM-2 of width 32, with random but fixed weights.

    The names and rounding are those of facebook's files: `esm.` first, inv_freq in every layer.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import EsmConfig, EsmModel

    folder = tmp_path_factory.mktemp("models") / "tiny_esm2"
    torch.manual_seed(7)
    model = EsmModel(EsmConfig(**SHAPE), add_pooling_layer=False)
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms are 0 and 1 initially
            parameter.add_(torch.randn_like(parameter) * 0.05)
    weights = {f"esm.{name}": tensor for name, tensor in model.state_dict().items()}
    rounded = weights.pop("esm.rotary_embeddings.inv_freq").half().float()
    for layer in range(SHAPE["num_hidden_layers"]):
        weights[INV_FREQ.format(layer)] = rounded.clone()
    model.config.save_pretrained(folder)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@dataclass
class Bench:
    """The embed handler, its options, and the warnings and progress of its claims."""

    handler: Embed
    options: dict[str, Any]
    tmp_path: Path
    warnings: list[str] = field(default_factory=list)
    progress: list[tuple[int, int]] = field(default_factory=list)

    def file(self, data: bytes | str, name: str = "x.faa") -> str:
        """Write an input."""
        path = self.tmp_path / name
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return str(path)

    def plan(self, *paths: str, cost_max: int = 10**9) -> list[Item]:
        """Survey the files and divide them into claims."""
        sources = [self.handler.survey(path, self.options) for path in paths]
        return list(self.handler.cut(sources, self.options, cost_max))

    def work(self, item: Item, *, stop: Callable[[], bool] = lambda: False) -> Work:
        """Return the work that a worker would pass to the handler."""
        partial = self.tmp_path / f"partial-{item.stem}"
        output = self.tmp_path / f"{item.stem}.safetensors"
        return Work(
            id=item.stem,
            kind=item.kind,
            cost=item.cost,
            attempt=0,
            payload=item.payload,
            options=self.options,
            output=output,
            partial=str(partial),
            is_stopping=stop,
            report=lambda done, total, _measures: self.progress.append((done, total)),
            warn=self.warnings.append,
        )

    def run(self, item: Item) -> bytes:
        """Run a claim, and return the bytes of its output."""
        work = self.work(item)
        self.handler.run(work)
        return work.output.read_bytes()

    def embed(self, *paths: str) -> Embeddings:
        """Plan files into one claim, run it, and read its output."""
        (item,) = self.plan(*paths)
        work = self.work(item)
        self.handler.run(work)
        return read(work.output)


@pytest.fixture
def make_bench(tiny_model: Path, tmp_path: Path) -> Callable[..., Bench]:
    """Make a Bench with these options."""

    def make(**options: Any) -> Bench:
        handler = Embed()
        chosen = {option.name: option.default for option in OPTIONS}
        chosen |= {"model": str(tiny_model), **options}
        return Bench(handler, handler.prepare(chosen), tmp_path)

    return make


@pytest.fixture
def bench(make_bench: Callable[..., Bench]) -> Bench:
    """A Bench with the default options."""
    return make_bench()


def fasta(sequences: Iterable[tuple[str, str]]) -> str:
    """Return (id, residues) pairs as FASTA."""
    return "".join(f">{name}\n{residues}\n" for name, residues in sequences)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many sequences or chunks reached the model, call by call."""
    from embed.engine.engine import Engine

    calls: list[int] = []
    real = Engine.run

    def counted(self: Engine, batches: Any, warn: Any) -> Any:
        for batch, rows in real(self, batches, warn):
            calls.append(len(batch))
            yield batch, rows

    monkeypatch.setattr(Engine, "run", counted)
    return calls


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Compute with one thread, so that sums are added in one order."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
