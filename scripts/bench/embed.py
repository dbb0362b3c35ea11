#!/usr/bin/env python3
"""Compare the engine with its alternatives: same weights, same sequences, in one run.

    scripts/bench/embed.py                           8M and 35M shapes, three mixes, and DNABERT-S
    scripts/bench/embed.py --shapes 8M --tokens 60000 --rounds 5
    scripts/bench/embed.py --esm-cpp ~/other/bin/python    esm-cpp too, by a Python that has it

Weights are random, in the published shapes. Ours goes through a whole claim: reading, checking,
batching, pooling, writing; `bare` is the same without files. The others get their sequences ready
to use, and write nothing. All take turns, on one thread; of each the best round counts. Tokens are
residues and the two around them, never padding. `error` is the least cosine with fair-esm's vectors
in float32 (for DNABERT with the padded reference). `ceiling` is what this machine's matrix products
reach in float32 or in half precision, by PyTorch, on a product of the model's own shape.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from embed.engine.batching import batches
from embed.engine.sequence_reader import SequenceReader
from embed.handlers.embed import Embed
from embed.inputs.fasta import parse_records
from embed.outputs import claim_file
from fsqueue import Work
from tests.support import dnabert as dna
from tests.support import fairesm

SIZES = {"8M": "esm2_t6_8M_UR50D", "35M": "esm2_t12_35M_UR50D"}
BUDGET = 4096
KINDS = ("float32", "bfloat16")
VOCABULARY = (
    *("<cls>", "<pad>", "<eos>", "<unk>"),
    *"LAGVSERTIDPKQNFYMHWCXBUZO.-",
    *("<null_1>", "<mask>"),
)
GOALS = {"float32": (1.5, 1.2), "bfloat16": (3.8, 1.4)}
"""Over fair-esm's loop in float32, and over transformers length-sorted in the same precision."""
ONCE = ("transformers, file order", "sentence-transformers")

Rows = np.ndarray
Variant = Callable[[], Rows]


@dataclass(slots=True)
class Result:
    """Of one variant: the best round's seconds, and what it gave."""

    cpu: float = float("inf")
    wall: float = float("inf")
    rows: Rows = field(default_factory=lambda: np.empty((0, 0)))


# ---- sequences ----


def mixes(tokens: int) -> dict[str, list[str]]:
    """Return the three mixes of proteins, about this many tokens each."""
    chance = random.Random(3)

    def protein(length: float) -> str:
        return "".join(chance.choices("LAGVSERTIDPKQNFYMHWC", k=int(length)))

    short = (protein(chance.uniform(50, 170)) for _ in range(100_000))
    broad = (protein(min(1022, max(30, chance.lognormvariate(5.7, 0.6)))) for _ in range(100_000))
    real = real_proteins()
    chance.shuffle(real)
    return {name: up_to(tokens, found) for name, found in
            (("real", iter(real)), ("50-170", short), ("lognormal", broad))}  # fmt: skip


def real_proteins() -> list[str]:
    """Return the 2,100 proteins of the pyhmmer package, as extract.py can read them."""
    import pyhmmer

    folder = Path(pyhmmer.__file__).parent / "tests" / "data" / "seqs"
    text = (folder / "938293.PRJEB85.HG003687.faa").read_bytes()
    return [each.residues.decode().replace("*", "")[:1022] for each in parse_records(text)]


def up_to(tokens: int, sequences: Iterator[str]) -> list[str]:
    found, total = [], 0
    for sequence in sequences:
        found.append(sequence)
        total += len(sequence) + 2
        if total >= tokens:
            break
    return found


# ---- ours ----


class Ours:
    """A whole claim, in its own folder, by a handler that keeps its model."""

    def __init__(self, folder: Path, model: Path, sequences: Sequence[str], dtype: str) -> None:
        self._handler = Embed()
        defaults = {option.name: option.default for option in Embed.options}
        self._folder = folder
        self.options = self._handler.prepare({**defaults, "model": str(model), "dtype": dtype})
        fasta = folder / "in.fa"
        fasta.write_text("".join(f">s{n}\n{text}\n" for n, text in enumerate(sequences)))
        source = self._handler.survey(str(fasta), self.options)
        (self._item,) = self._handler.cut([source], self.options, 10**18)
        self._handler.warm(self.options)
        self.sequences = sequences

    def claim(self) -> Rows:
        """Do it, from reading to the written file."""
        item, output = self._item, self._folder / "out.safetensors"
        work = Work(
            id=item.stem, kind=item.kind, cost=item.cost, attempt=0, payload=item.payload,
            options=self.options, output=output, partial=f"{output}.partial",
            is_stopping=lambda: False, report=lambda *_: None, warn=print,
        )  # fmt: skip
        self._handler.run(work)
        return claim_file.read(output).rows

    def bare(self) -> Rows:
        """Only batches through the engine."""
        engine, tokenizer = self._handler.engine(self.options, print)
        wanted = (Record(text.encode()) for text in self.sequences)
        options = self.options
        reader = SequenceReader(wanted, tokenizer, options)
        rows = np.zeros((len(self.sequences), engine.width), np.float32)
        for batch in batches(reader, options["tokens_per_batch"]):
            for one, row in zip(batch, engine.embed(batch, print), strict=True):
                rows[one.row] += one.share * row
        return rows


@dataclass(frozen=True, slots=True)
class Record:
    """A sequence that was read."""

    residues: bytes
    id: str = ""


# ---- the others ----


def transformers_loop(
    model: Any, tokenizer: Any, sequences: Sequence[str], groups: Sequence[Sequence[int]]
) -> Rows:
    """Run padded batches with a mask, as its documentation does; mean without begin and end."""
    rows = np.zeros((len(sequences), model.config.hidden_size), np.float32)
    for group in groups:
        texts = [sequences[n] for n in group]
        inputs = tokenizer(texts, return_tensors="pt", padding=True)
        with torch.inference_mode():
            states = model(**inputs).last_hidden_state
        for n, state in zip(group, states, strict=True):
            rows[n] = state[1 : len(sequences[n]) + 1].float().mean(0).numpy()
    return rows


def in_file_order(sequences: Sequence[str], size: int = 16) -> list[list[int]]:
    return [list(range(n, min(n + size, len(sequences)))) for n in range(0, len(sequences), size)]


def length_sorted(lengths: Sequence[int]) -> list[list[int]]:
    """Return batches of about equal lengths, of at most BUDGET tokens with their padding."""
    groups: list[list[int]] = [[]]
    for n in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
        longest = lengths[groups[-1][0]] if groups[-1] else lengths[n]
        if groups[-1] and (len(groups[-1]) + 1) * longest > BUDGET:
            groups.append([])
        groups[-1].append(n)
    return groups


def sentence_transformers(folder: Path) -> Any:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    module = Transformer(str(folder), max_seq_length=1024)
    return SentenceTransformer(modules=[module, Pooling(module.get_word_embedding_dimension())])


ESM_CPP = """
import json, sys, time
import esm_cpp, numpy
folder, texts = json.load(sys.stdin)
model, tokenizer = esm_cpp.Model.load(folder), esm_cpp.Tokenizer()
ids = [numpy.array(tokenizer.encode(text), numpy.int32) for text in texts]
best = (9e9, 9e9)
for _ in range(2):
    cpu, wall = time.process_time(), time.perf_counter()
    model.forward_scheduled(ids)
    best = min(best, (time.process_time() - cpu, time.perf_counter() - wall))
print(json.dumps(best))
"""


def esm_cpp(python: str, folder: Path, sequences: Sequence[str]) -> Result:
    """Time esm-cpp's packed float32 pass; it needs numpy 1, and so its own environment."""
    words = json.dumps([str(folder / "model.safetensors"), list(sequences)])
    environment = {"OMP_NUM_THREADS": "1", "ESM_NUM_THREADS": "1"}
    ran = subprocess.run([python, "-c", ESM_CPP], input=words, text=True, env=environment,
                         capture_output=True, check=True)  # fmt: skip
    return Result(*json.loads(ran.stdout.splitlines()[-1]))


# ---- measuring ----


def take_turns(variants: dict[str, Variant], rounds: int) -> dict[str, Result]:
    """Run each once a round, and keep its best; those that no goal names only in the first."""
    results = {name: Result() for name in variants}
    for turn in range(rounds):
        for name, variant in variants.items():
            if turn and name in ONCE:
                continue
            cpu, wall = time.process_time(), time.perf_counter()
            rows = variant()
            took = time.process_time() - cpu, time.perf_counter() - wall
            best = results[name]
            best.cpu, best.wall = min(best.cpu, took[0]), min(best.wall, took[1])
            best.rows = rows
    return results


def ceiling(width: int, inner: int, kind: torch.dtype) -> float:
    """Return the flops that one thread reaches on the model's own largest product."""
    x, w = torch.randn(BUDGET, width).to(kind), torch.randn(inner, width).to(kind)
    best = float("inf")
    with torch.inference_mode():
        for _ in range(6):
            start = time.process_time()
            for _ in range(3):
                F.linear(x, w)
            best = min(best, (time.process_time() - start) / 3)
    return 2 * BUDGET * width * inner / best


def flops(layers: int, per_token: int, width: int, lengths: Sequence[int]) -> float:
    """Return the products of a pass: with the weights, and of tokens with each other."""
    total = float(sum(lengths))
    return layers * (per_token * total + 4 * width * sum(n * n for n in lengths))


def cosine(rows: Rows, exact: Rows) -> float:
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(exact, axis=1)
    return float(((rows * exact).sum(1) / lengths).min())


def show(results: dict[str, Result], tokens: int, work: float, exact: Rows, first: str) -> None:
    base = results[first].cpu
    for name, found in results.items():
        peak = CEILINGS["bfloat16" if "bfloat16" in name else "float32"]
        near = f"{cosine(found.rows, exact):.6f}" if len(found.rows) else "-"
        print(f"  {name:34} {tokens / found.cpu:8,.0f} {tokens / found.wall:8,.0f}"
              f" {base / found.cpu:7.2f} {work / found.cpu / peak:8.0%}   {near}")  # fmt: skip


CEILINGS: dict[str, float] = {}
HEADER = f"  {'':34} {'tok/CPU-s':>8} {'tok/s':>8} {'ratio':>7} {'ceiling':>8}   least cosine"


class Peers:
    """One shape's weights, as loaded by each contender."""

    def __init__(self, size: str, folder: Path) -> None:
        from transformers import AutoTokenizer, EsmModel

        layers, self.width, _heads = fairesm.SIZES[SIZES[size]]
        self.layers = layers
        self.fair = fairesm.random_model(SIZES[size])
        self.folder = fairesm.save(self.fair, SIZES[size], folder / size)
        (self.folder / "vocab.txt").write_text("\n".join(VOCABULARY))
        (self.folder / "tokenizer_config.json").write_text('{"tokenizer_class": "EsmTokenizer"}')
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder)
        self.stock = {
            kind: EsmModel.from_pretrained(self.folder, add_pooling_layer=False, dtype=kind).eval()
            for kind in KINDS
        }
        self.sentences = sentence_transformers(self.folder)

    def variants(self, texts: list[str], ours: dict[str, Ours]) -> dict[str, Variant]:
        """Return how each contender embeds these sequences."""
        groups = length_sorted([len(text) + 2 for text in texts])

        def stock(kind: str, groups: list[list[int]]) -> Rows:
            return transformers_loop(self.stock[kind], self.tokenizer, texts, groups)

        return {
            "fair-esm extract.py": lambda: fairesm.extract(self.fair, texts),
            "transformers, file order": lambda: stock("float32", in_file_order(texts)),
            "transformers, sorted": lambda: stock("float32", groups),
            "sentence-transformers": lambda: self.sentences.encode(texts, batch_size=32),
            "fsqueue, a claim": ours["float32"].claim,
            "fsqueue, bare": ours["float32"].bare,
            "transformers, sorted, bfloat16": lambda: stock("bfloat16", groups),
            "fsqueue, a claim, bfloat16": ours["bfloat16"].claim,
            "fsqueue, bare, bfloat16": ours["bfloat16"].bare,
        }


def esm2(size: str, given: argparse.Namespace, folder: Path) -> list[str]:
    """Compare on one shape of ESM-2; return what missed its goal."""
    peers = Peers(size, folder)
    for kind in KINDS:
        CEILINGS[kind] = ceiling(peers.width, 4 * peers.width, getattr(torch, kind))
    missed = []
    for name, texts in mixes(given.tokens).items():
        ours = {}
        for kind in KINDS:
            place = folder / f"{size}-{name}-{kind}"
            place.mkdir()
            ours[kind] = Ours(place, peers.folder, texts, kind)
        results = take_turns(peers.variants(texts, ours), given.rounds)
        if given.esm_cpp:
            results["esm-cpp, float32, packed"] = esm_cpp(given.esm_cpp, peers.folder, texts)
        lengths = [len(text) + 2 for text in texts]
        print(f"\nESM-2 {size}, {name}: {len(texts)} sequences, {sum(lengths):,} tokens")
        print(HEADER)
        work = flops(peers.layers, 24 * peers.width**2, peers.width, lengths)
        exact = results["fair-esm extract.py"].rows
        show(results, sum(lengths), work, exact, "fair-esm extract.py")
        missed += verdicts(f"{size}, {name}", results)
    return missed


def verdicts(where: str, results: dict[str, Result]) -> Iterator[str]:
    """Yield the goals that were missed."""
    for kind, (over_esm, over_sorted) in GOALS.items():
        tail = "" if kind == "float32" else f", {kind}"
        claim, bare = results[f"fsqueue, a claim{tail}"].cpu, results[f"fsqueue, bare{tail}"].cpu
        for other, goal in (("fair-esm extract.py", over_esm), (f"transformers, sorted{tail}",
                                                                 over_sorted)):  # fmt: skip
            ratio = results[other].cpu / claim
            if ratio < goal:
                yield f"{where}, {kind}: {ratio:.2f} x {other}, goal {goal}"
        if claim > 1.05 * bare:
            yield f"{where}, {kind}: a claim costs {claim / bare - 1:.0%} over the engine, goal 5 %"


def dnabert(given: argparse.Namespace, folder: Path) -> list[str]:
    """Compare DNABERT's published shape with a padded reference in the same weights."""
    from embed.models.dnabert import network as native
    from embed.models.dnabert.shape import DnabertShape

    shape = DnabertShape(4096, 768, 12, 12, 3072, 2, 1e-12)
    torch.manual_seed(4)
    weights = {name: torch.randn(size) * 0.02 + ("orm.weight" in name)
               for name, size in shape.tensors().items()}  # fmt: skip
    config = {"num_attention_heads": 12, "num_hidden_layers": 12, "layer_norm_eps": 1e-12}
    chance = np.random.default_rng(6)
    rows = [chance.integers(5, 4096, int(n)).astype(np.uint16) for n in
            chance.integers(60, 200, max(16, given.tokens // 1000))]  # fmt: skip
    lengths = [len(row) + 2 for row in rows]
    order = sorted(range(len(rows)), key=lambda n: -lengths[n])

    def reference() -> Rows:
        found = []
        for group in in_file_order(["" for _ in rows]):
            batch = [[1, *rows[n].tolist(), 2] for n in group]
            with torch.inference_mode():
                found += dna.reference_states(weights, config, batch)
        return np.array([states.mean(0).numpy() for states in found])

    def ours(kind: torch.dtype) -> Variant:
        encoder = native.DnabertEncoder(shape, {name: w.to(kind) for name, w in weights.items()})

        def run() -> Rows:
            states = encoder.hidden([rows[n] for n in order]).split()
            table = np.zeros((len(rows), 768), np.float32)
            for n, state in zip(order, states, strict=True):
                table[n] = state.float().mean(0).numpy()
            return table

        return run

    for kind in ("float32", "bfloat16"):
        CEILINGS[kind] = ceiling(768, 3072, getattr(torch, kind))
    variants = {"padded reference, file order": reference, "fsqueue": ours(torch.float32),
                "fsqueue, bfloat16": ours(torch.bfloat16)}  # fmt: skip
    results = take_turns(variants, max(1, given.rounds - 1))
    print(f"\nDNABERT-S, published shape: {len(rows)} sequences, {sum(lengths):,} tokens")
    print(HEADER)
    work = flops(12, 2 * (4 * 768**2 + 3 * 768 * 3072), 768, lengths)
    exact = results["padded reference, file order"].rows
    show(results, sum(lengths), work, exact, "padded reference, file order")
    ratio = results["padded reference, file order"].cpu / results["fsqueue, bfloat16"].cpu
    return [f"DNABERT-S, bfloat16: {ratio:.2f} x the padded reference, goal 4"] * (ratio < 4)


def main() -> None:
    """Print a table for each shape and mix, and what missed its goal."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shapes", default="8M,35M,dnabert")
    parser.add_argument("--tokens", type=int, default=60_000, help="of each mix")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--esm-cpp", metavar="PYTHON", help="a Python that has esm-cpp")
    given = parser.parse_args()
    torch.set_num_threads(1)
    missed = []
    with tempfile.TemporaryDirectory(prefix="bench-embed-") as name:
        for size in given.shapes.split(","):
            compare = dnabert if size == "dnabert" else lambda g, f, s=size: esm2(s, g, f)
            missed += compare(given, Path(name))
            for kind, peak in CEILINGS.items():
                print(f"  ceiling, {kind}: {peak / 1e9:,.0f} GFLOP/s of one thread")
    print("\nmissed:" if missed else "\nevery goal was met")
    for line in missed:
        print(f"  {line}")


if __name__ == "__main__":
    main()
