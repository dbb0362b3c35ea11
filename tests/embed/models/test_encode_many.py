"""Texts tokenized together: bounded blocks, the threads that were asked for, after a fork, too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from embed.models import encode_many
from tests.support.dnabert import write_tokenizer

READ = """
import os, sys
from embed.models.dnabert.tokenizer import DnaTokenizer
from embed.models.encode_many import use_one_thread

def threads():
    return len(os.listdir("/proc/self/task"))

def read():
    return [ids.tolist() for ids, _ in tokenizer.read_many([TEXT.encode()] * 500)]

TEXT = "ACGTTGCAAC" * 9
before, environment = threads(), dict(os.environ)
tokenizer = DnaTokenizer(sys.argv[1])
alone = [tokenizer._tokenizer.encode(TEXT, add_special_tokens=False).ids] * 500
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tokenizer of a DNABERT."""
    found = tmp_path_factory.mktemp("dna")
    write_tokenizer(found / "tokenizer.json", 200)
    return found


def run(folder: Path, code: str, first: str = "", **variables: str) -> str:
    """Run READ and then `code` in a new process; return what it prints."""
    own = ("RAYON_NUM_THREADS", "TOKENIZERS_PARALLELISM")
    environment = {name: value for name, value in os.environ.items() if name not in own}
    done = subprocess.run(
        [sys.executable, "-c", first + READ + code, str(folder)],
        env=environment | variables, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


COUNT = "assert read() == alone and dict(os.environ) == environment; print(threads() - before)"


def test_there_is_a_thread_for_each_core_that_the_process_may_use(folder: Path) -> None:
    cores = min(len(os.sched_getaffinity(0)), encode_many.THREADS_MAX)
    assert run(folder, COUNT) == str(cores)


def test_a_process_on_one_core_has_one_thread_for_it(folder: Path) -> None:
    (core, *_) = sorted(os.sched_getaffinity(0))
    limit = f"import os; os.sched_setaffinity(0, [{core}])\n"
    assert run(folder, COUNT, first=limit) == "1"


def test_where_one_thread_is_asked_for_there_is_no_other(folder: Path) -> None:
    first = "from embed.models.encode_many import use_one_thread; use_one_thread()\n"
    assert run(folder, COUNT, first) == "0"


def test_the_library_s_own_variables_take_precedence(folder: Path) -> None:
    assert run(folder, COUNT, RAYON_NUM_THREADS="5") == "5"
    first = "from embed.models.encode_many import use_one_thread; use_one_thread()\n"
    assert run(folder, COUNT, first, RAYON_NUM_THREADS="5") == "5"
    assert run(folder, COUNT, TOKENIZERS_PARALLELISM="false") == "0"


def test_a_forked_process_gets_the_same_ids(folder: Path) -> None:
    """The threads are not in it; the library must not wait for them."""
    code = (
        "assert read() == alone\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    os._exit(0 if read() == alone else 1)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "print('same')"
    )
    assert run(folder, code) == "same"


@given(texts=some.lists(some.text(max_size=30), max_size=60))
def test_blocks_are_bounded_and_have_every_text_in_order(texts: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode_many, "LETTERS", 50)
        found = list(encode_many.blocks(texts, len))
    assert [text for block in found for text in block] == texts
    assert all(sum(map(len, block[:-1])) < 50 for block in found)
    assert all(sum(map(len, block)) >= 50 for block in found[:-1])
