"""Tokenize many texts at once with the tokenizers library, on several cores.

The library computes in threads of its own, without the lock of Python's interpreter, so that a GPU
is asked for kernels meanwhile. It also leaves out where each token is in its text, which the ids do
not need. They are those of one text at a time, in the order of the texts.

How many threads: one for each core that this process may use, at most THREADS_MAX; in a worker that
computes on a CPU with one thread, only the caller's. The library's own variables, RAYON_NUM_THREADS
and TOKENIZERS_PARALLELISM, take precedence. A process that was forked has none of
the threads: the library notices, and computes in the one that is left.

What this module does not know: what a text is, and windows.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, TypeVar

Item = TypeVar("Item")
EncodeMany = Callable[[Sequence[str]], Iterator[list[int]]]

THREADS_MAX: Final = 8
"""They make more tokens than a GPU takes, and a node may have a worker for each of eight GPUs."""
LETTERS: Final = 1 << 18
"""About how many are read together: the library needs some 100 bytes for each token."""
_THREADS: Final = "RAYON_NUM_THREADS"
_is_chosen: Final = any(name in os.environ for name in (_THREADS, "TOKENIZERS_PARALLELISM"))
_one_at_a_time = False


def use_one_thread() -> None:
    """From now on tokenize in the caller's thread, unless the library's variables are set.

    Not by setting one: another thread may be tokenizing, and read the environment.
    """
    global _one_at_a_time
    _one_at_a_time = not _is_chosen


def encode_many(tokenizer: Any) -> EncodeMany:
    """Return a function that yields the ids of each text, without begin and end tokens.

    `tokenizer` is one of the tokenizers library, which neither pads nor truncates.
    """

    def encode(texts: list[str]) -> Iterator[list[int]]:
        if _one_at_a_time:
            return (tokenizer.encode(text, add_special_tokens=False).ids for text in texts)
        found = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return (encoding.ids for encoding in found)

    return in_blocks(encode)


def in_blocks(encode: Callable[[list[str]], Iterable[list[int]]]) -> EncodeMany:
    """Return a function that does the same with any number of texts, in bounded memory."""
    if not _is_chosen and not _one_at_a_time:
        _start_threads(encode)

    def encode_all(texts: Sequence[str]) -> Iterator[list[int]]:
        for block in blocks(texts, len):
            yield from encode(block)

    return encode_all


def _start_threads(encode: Callable[[list[str]], Iterable[list[int]]]) -> None:
    """Let the library start its threads, if it has none yet: it reads how many when it first has
    several texts. Programs that the worker starts later must not inherit the variable."""
    os.environ[_THREADS] = str(min(len(os.sched_getaffinity(0)), THREADS_MAX))
    try:
        list(encode(["A", "A"]))
    finally:
        del os.environ[_THREADS]


def blocks(items: Iterable[Item], letters: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Yield runs of items with about LETTERS letters together; a longer one ends a run."""
    block: list[Item] = []
    count = 0
    for item in items:
        block.append(item)
        count += letters(item)
        if count >= LETTERS:
            yield block
            block, count = [], 0
    if block:
        yield block
