#!/usr/bin/env python3
"""Measure how fast sequences become token ids: parsed, tokenized, counted, sorted for batches.

    scripts/bench/feeding.py
    scripts/bench/feeding.py --old ~/fsqueue-before    the same of another checkout, in turns
    taskset -c 0 scripts/bench/feeding.py              on one core

Needs no GPU, no model and no network: vocabularies are trained here, of the published sizes or
smaller. The best of several rounds counts. `a batch` is the CPU time that 65,536 tokens take, which
a thread spends while the GPU computes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TOKENS = 65_536
ROUNDS = 3
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


def reading(folder: Path, kind: str) -> Callable[[], int]:
    """Return what reads everything, and returns the number of tokens."""
    from embed.engine.batching import batches
    from embed.engine.sequence_reader import SequenceReader
    from embed.inputs.fasta import parse_records
    from embed.models.families import load_tokenizer

    families = {"ESM-2": "esm2", "BPE of DNA": "dnabert"}
    tokenizer = load_tokenizer(families.get(kind, "auto"), str(folder / kind))
    options = {
        "long": "truncate",
        "max_residues": {"ESM-2": 1022, "BPE of DNA": 10_000}.get(kind, 1024),
    }
    if kind in ("ESM-2", "a table (Ankh)"):
        sequences, step = proteins(8000), 60
    else:
        sequences, step = (dna(1200) if kind == "BPE of DNA" else texts(1500)), 10_000
    lines = []
    for n, text in enumerate(sequences):
        lines.append(f">sp|P{n:06}|NAME_SPECIES a description of it")
        lines += [text[at : at + step] for at in range(0, len(text), step)]
    data = "\n".join(lines).encode()

    def read() -> int:
        reader = SequenceReader(parse_records(data), tokenizer, options)
        found = list(batches(reader, 4096))
        return sum(one.tokens for batch in found for one in batch)

    return read


def measure(folder: Path, kind: str) -> tuple[int, float, float]:
    """Return the tokens, the CPU seconds and the seconds of one reading."""
    read = reading(folder, kind)
    read()
    cpu, wall = time.process_time(), time.perf_counter()
    tokens = read()
    return tokens, time.process_time() - cpu, time.perf_counter() - wall


def run(root: Path, folder: Path, kind: str) -> tuple[int, float, float]:
    """Measure a checkout in a process of its own."""
    command = [sys.executable, __file__, "--root", str(root), "--folder", str(folder), kind]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    tokens, cpu, wall = json.loads(done.stdout.splitlines()[-1])
    return tokens, cpu, wall


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("kinds", nargs="*", default=KINDS, help="some of: " + ", ".join(KINDS))
    parser.add_argument("--old", type=Path, help="another checkout")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.root:
        sys.path.insert(0, str(given.root))
        print(json.dumps(measure(given.folder, given.kinds[0])))
        return
    roots = {"now": Path(__file__).resolve().parents[2]}
    if given.old:
        roots = {"old": given.old.expanduser().resolve()} | roots
    print(f"{len(os.sched_getaffinity(0))} cores")
    print(f"{'':16}{'':5}{'tokens/CPU-s':>15}{'tokens/s':>13}{'a batch, ms':>13}")
    with tempfile.TemporaryDirectory() as folder:
        for kind in given.kinds:
            if kind != "ESM-2":
                vocabulary(Path(folder) / kind, kind)
            found: dict[str, list[tuple[int, float, float]]] = {name: [] for name in roots}
            for _ in range(given.rounds):
                for name, root in roots.items():
                    found[name].append(run(root, Path(folder), kind))
            for name, rounds in found.items():
                tokens = rounds[0][0]
                cpu, wall = (min(each[n] for each in rounds) for n in (1, 2))
                print(f"{kind:16}{name:5}{tokens / cpu:15,.0f}{tokens / wall:13,.0f}"
                      f"{1e3 * cpu * TOKENS / tokens:13.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
