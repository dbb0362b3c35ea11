#!/usr/bin/env python3
"""Measure how fast sequences become token ids: parsed, tokenized, counted, sorted for batches.

    scripts/bench/feeding.py
    scripts/bench/feeding.py --old ~/fsqueue-before    the same of another checkout, in turns
    taskset -c 0 scripts/bench/feeding.py              on one core
    scripts/bench/feeding.py ESM-2 --device 8e6        a whole claim, beside a device of this speed

Needs no GPU, no model and no network: vocabularies are trained here, of the published sizes or
smaller. The best of several rounds counts. `a batch` is the CPU time that 65,536 tokens take, which
a thread spends while the GPU computes. With --device, claims go from FASTA to a written table, and
instead of a GPU there is a clock: for how much of the time had it nothing to compute?
"""

from __future__ import annotations

import argparse
import gc
import inspect
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

TOKENS = 65_536
ROUNDS = 3
WIDTH = 320
CLAIMS = 5
KINDS = ("ESM-2", "a table (Ankh)", "BPE of DNA", "word pieces", "unigrams")


def proteins(count: int) -> list[str]:
    rng = random.Random(1)
    lengths = (min(max(int(rng.lognormvariate(5.65, 0.6)), 20), 2000) for _ in range(count))
    return ["".join(rng.choices("LAGVSERTIDPKQNFYMHWC", k=length)) for length in lengths]


def dna(count: int) -> list[str]:
    rng = random.Random(2)
    return ["".join(rng.choices("ACGT", k=rng.randrange(300, 3000))) for _ in range(count)]


def texts(count: int) -> list[str]:
    """Return pieces of the standard library's source: words, names and numbers."""
    paths = sorted(Path(os.__file__).parent.glob("*.py"))
    whole = "".join(path.read_text(errors="replace") for path in paths)
    return [whole[n * 1000 : n * 1000 + 1000].replace(">", " ") for n in range(count)]


def vocabulary(folder: Path, kind: str) -> None:
    """Train a tokenizer and save it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    special = ["[UNK]", "[CLS]", "[SEP]"]
    given: dict[str, Any] = {"special_tokens": special, "show_progress": False}
    trainer: Any
    if kind == "BPE of DNA":
        tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
        trainer, sample = trainers.BpeTrainer(vocab_size=4096, **given), dna(200)
    elif kind == "word pieces":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer, sample = trainers.WordPieceTrainer(vocab_size=8000, **given), texts(1000)
    elif kind == "unigrams":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=4000, unk_token="[UNK]", **given)
        sample = texts(500)
    else:
        pieces = [(token, 0.0) for token in special]
        pieces += [(letter, -0.1 * n) for n, letter in enumerate("LAGVERSTIDPKQNFYMHWCXBUZO")]
        tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
        trainer = None
    if trainer is not None:
        tokenizer.train_from_iterator(sample, trainer)
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))


def fasta(kind: str, copies: int = 1) -> bytes:
    """Return the sequences or texts of a kind."""
    step = 10_000
    if kind in ("ESM-2", "a table (Ankh)"):
        sequences, step = proteins(8000), 60
    else:
        sequences = dna(1200) if kind == "BPE of DNA" else texts(1500)
    lines = []
    for n, text in enumerate(sequences * copies):
        lines.append(f">sp|P{n:06}|NAME_SPECIES a description of it")
        lines += [text[at : at + step] for at in range(0, len(text), step)]
    return "\n".join(lines).encode()


def tokenizer_of(folder: Path, kind: str) -> Any:
    from embed.models.families import load_tokenizer

    families = {"ESM-2": "esm2", "BPE of DNA": "dnabert"}
    return load_tokenizer(families.get(kind, "auto"), str(folder / kind))


def options_of(kind: str) -> dict[str, Any]:
    return {
        "long": "truncate",
        "max_residues": {"ESM-2": 1022, "BPE of DNA": 10_000}.get(kind, 1024),
        "tokens_per_batch": 4096,
    }


def thread_seconds() -> dict[str, float]:
    """Return the CPU seconds of this process's threads, without the main one."""
    found = {}
    for name in set(os.listdir("/proc/self/task")) - {str(os.getpid())}:
        with suppress(FileNotFoundError, ProcessLookupError):  # RACE: the thread just ended
            text = Path(f"/proc/self/task/{name}/schedstat").read_text()
            found[name] = int(text.split()[0]) / 1e9
    return found


def read_all(folder: Path, kind: str) -> tuple[int, float, float]:
    """Return the tokens, the CPU seconds of reading them, and how long it would take on idle cores:
    the time of all threads, but of those that work side by side only that of the busiest."""
    from embed.engine.batching import batches
    from embed.engine.sequence_reader import SequenceReader
    from embed.inputs.fasta import parse_records

    tokenizer, options, data = tokenizer_of(folder, kind), options_of(kind), fasta(kind)
    for _ in range(2):
        cpu, before = time.process_time(), thread_seconds()
        reader = SequenceReader(parse_records(data), tokenizer, options)
        tokens = 0
        for batch in batches(reader, options["tokens_per_batch"]):
            tokens += sum(one.tokens for one in batch)
        spent, after = time.process_time() - cpu, thread_seconds()
    # Of tokenizers, whose threads have been there since the first time.
    side_by_side = [after[name] - seconds for name, seconds in before.items() if name in after]
    alone_s = spent - sum(side_by_side) + max(side_by_side, default=0.0)
    return tokens, spent, alone_s


class Pretended:
    """A launch on a device that computes by the clock, one after the other."""

    idle_since = 0.0
    waited_s = 0.0

    def __init__(self, tokens: int, sequences: int, rate: float) -> None:
        now = time.perf_counter()
        Pretended.waited_s += max(0.0, now - Pretended.idle_since)
        self._rows = np.zeros((sequences, WIDTH), np.float32)
        self.computing_s = tokens / rate
        self._due = Pretended.idle_since = max(now, Pretended.idle_since) + self.computing_s

    def rows(self) -> Any:
        time.sleep(max(0.0, self._due - time.perf_counter()))
        return self._rows


def do_claim(folder: Path, kind: str, rate: float) -> tuple[int, float, float]:
    """Return the tokens of CLAIMS claims, their CPU seconds, and for which share of the time a
    device that computes `rate` tokens a second had nothing to do. No kernels are asked for."""
    import torch

    torch.set_num_threads(1)
    from embed.engine import model_cache
    from embed.engine.budget import FoundBudget
    from embed.engine.device import Cpu
    from embed.engine.engine import Engine
    from embed.handlers.embed_claim import ClaimModel, embed
    from embed.inputs.fasta import parse_records
    from embed.models.conventions.convention import Convention
    from embed.models.conventions.pooling import Pooler
    from embed.models.cost import ModelShape
    from embed.models.packed.kernels import Kernel
    from embed.models.packed.layout import Frame
    from fsqueue import Work

    class Device(Cpu):
        ahead = 3

    class Encoder:
        width = WIDTH
        frame = Frame((1,), (2,), 33 if kind == "ESM-2" else 30_000)

        def kernel(self, _capability: Any) -> Any:
            return Kernel.VARLEN

    class Segment:
        path = "x.fa"

        def __init__(self) -> None:
            self._data = fasta(kind, 1 if kind == "ESM-2" else 4)
            self.sequences = self._data.count(b">")

        def records(self) -> Any:
            return parse_records(self._data)

    def launch(_self: Any, sequences: Any, layout: Any, buffer: Any) -> Any:
        layout.write([one.ids for one in sequences], buffer.numpy())
        return Pretended(layout.tokens, len(sequences), rate)

    Engine._launch = launch
    device: Any = Device()
    budget = FoundBudget(device, TOKENS)
    budget.settled = True
    engine: Any = Engine(Encoder(), Pooler(Convention()), device, budget)
    shape = dict.fromkeys(inspect.signature(ModelShape).parameters, 1)
    options = {
        "pooling": "mean",
        "width": WIDTH,
        "checkpoint_seconds": 1e9,
        "dtype": "float32",
        "shape": shape,
    }
    segment: Any = Segment()
    model = ClaimModel(tokenizer_of(folder, kind), lambda: engine)
    engine._device.reach = lambda _dtype: 1.0
    tokens = 0
    if hasattr(model_cache, "gc"):  # where models are loaded; not before 2026-11-30
        gc.collect()
        gc.freeze()

    def report(_done: int, _total: int, measures: Any) -> None:
        nonlocal tokens
        tokens += measures.get("tokens", 0)

    cpu = wall = idle_s = 0.0
    for number in range(1 + CLAIMS):
        work = Work(
            id="x", kind="x", cost=1, attempt=0, payload={"sequences": segment.sequences},
            options=options_of(kind) | options, output=folder / f"{os.getpid()}",
            partial=str(folder / "partial"), is_stopping=lambda: False, report=report, warn=print,
        )  # fmt: skip
        Pretended.waited_s = 0.0
        cpu_begun = time.process_time()
        begun = Pretended.idle_since = time.perf_counter()
        embed(work, [segment], model, {})
        if number:  # the first one also loads libraries
            cpu += time.process_time() - cpu_begun
            wall += time.perf_counter() - begun
            idle_s += Pretended.waited_s + max(0.0, time.perf_counter() - Pretended.idle_since)
        else:
            tokens = 0
        work.output.unlink()
    return tokens, cpu, idle_s / wall


def run(root: Path, folder: Path, kind: str, rate: float) -> tuple[int, float, float]:
    """Measure a checkout in a process of its own."""
    command = [sys.executable, __file__, "--root", str(root), "--folder", str(folder)]
    command += ["--device", str(rate), kind]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    tokens, cpu, other = json.loads(done.stdout.splitlines()[-1])
    return tokens, cpu, other


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("kinds", nargs="*", default=KINDS, help="some of: " + ", ".join(KINDS))
    parser.add_argument("--old", type=Path, help="another checkout")
    parser.add_argument("--device", type=float, default=0.0, metavar="TOKENS_PER_S")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.root:
        sys.path.insert(0, str(given.root))
        kind = given.kinds[0]
        rate = given.device
        print(
            json.dumps(do_claim(given.folder, kind, rate) if rate else read_all(given.folder, kind))
        )
        return
    roots = {"now": Path(__file__).resolve().parents[2]}
    if given.old:
        roots = {"old": given.old.expanduser().resolve()} | roots
    print(f"{len(os.sched_getaffinity(0))} cores")
    last = "device idle" if given.device else "on idle cores, tokens/s"
    print(f"{'':16}{'device':>12} {'':5}{'tokens/CPU-s':>15}{'a batch, ms':>13}  {last}")
    with tempfile.TemporaryDirectory() as folder:
        for kind in given.kinds:
            if kind != "ESM-2":
                vocabulary(Path(folder) / kind, kind)
            compare(roots, Path(folder), kind, given.device, given.rounds)


def compare(roots: dict[str, Path], folder: Path, kind: str, rate: float, rounds: int) -> None:
    """Print a line for each checkout: the best of some rounds, in turns."""
    found: dict[str, list[tuple[int, float, float]]] = {name: [] for name in roots}
    for _ in range(rounds):
        for name, root in roots.items():
            found[name].append(run(root, folder, kind, rate))
    for name, each in found.items():
        tokens = each[0][0]
        cpu, other = (min(one[n] for one in each) for n in (1, 2))
        last = f"{other:8.0%}" if rate else f"{tokens / other:13,.0f}"
        print(f"{kind:16}{rate:12,.0f} {name:5}{tokens / cpu:15,.0f}"
              f"{1e3 * cpu * TOKENS / tokens:13.2f}{last}")  # fmt: skip


if __name__ == "__main__":
    main()
