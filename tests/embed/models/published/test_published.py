"""Models that people run: the ids of their own tokenizer, the vectors of their published usage."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from embed import Encoder
from embed.models.families import load_tokenizer
from embed.models.generic.tokenizer import GenericTokenizer
from embed.models.windows import Windows
from tests.embed.conftest import Bench, fasta
from tests.support import published_models as published

MakeBench = Callable[..., Bench]
PROTEINS = [name for name, model in published.MODELS.items() if model.inputs == published.PROTEINS]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Write a model's folder when it is first asked for."""
    root, written = tmp_path_factory.mktemp("published"), dict[str, Path]()

    def folder(name: str) -> Path:
        if name not in written:
            written[name] = published.write(root / str(len(written)), name)
        return written[name]

    return folder


def loaded(folder: Path, **options: object) -> Encoder:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Encoder.load(str(folder), **options)


@pytest.mark.parametrize("name", published.MODELS)
def test_ids_are_those_of_the_model_s_own_tokenizer(
    folders: Callable[[str], Path], name: str
) -> None:
    folder = folders(name)
    convention = loaded(folder).convention
    tokenizer = load_tokenizer("auto", str(folder), convention)
    assert isinstance(tokenizer, GenericTokenizer)
    begin, end = tokenizer.frame
    for text in published.MODELS[name].inputs:
        found = [*begin, *tokenizer.read(text.encode())[0], *end]
        assert found == published.ids(folder, name, text), text


@pytest.mark.parametrize("name", published.MODELS)
def test_ids_of_many_texts_are_those_of_one_at_a_time(
    folders: Callable[[str], Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library has threads for these; a block ends in the middle of them."""
    monkeypatch.setattr("embed.models.encode_many.LETTERS", 2000)
    monkeypatch.setattr("embed.models.encode_many._one_at_a_time", False)
    folder, inputs = folders(name), published.MODELS[name].inputs
    tokenizer = load_tokenizer("auto", str(folder), loaded(folder).convention)
    begin, end = (len(ids) for ids in tokenizer.frame)  # type: ignore[attr-defined]
    texts = [text.encode() for text in inputs] * 20
    found = tokenizer.windows(texts, Windows(10_000), first_only=True)
    expected = [published.ids(folder, name, text) for text in inputs] * 20
    for (windows, has_more), ids in zip(found, expected, strict=True):
        assert not has_more
        assert list(windows[0].ids) == ids[begin : len(ids) - end]  # type: ignore[call-overload]


@pytest.mark.parametrize("name", published.MODELS)
def test_vectors_are_those_of_the_published_usage(
    folders: Callable[[str], Path], name: str
) -> None:
    folder, texts = folders(name), published.MODELS[name].inputs
    found = loaded(folder).encode(texts).astype(np.float64)
    expected = np.array([published.vector(folder, name, text) for text in texts])
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    assert ((found * expected).sum(1) / lengths).min() >= 0.999999
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", PROTEINS)
def test_every_residue_of_a_protein_has_a_row(
    folders: Callable[[str], Path], make_bench: MakeBench, name: str
) -> None:
    """Also one that no vocabulary has: tokenizers merge those, which shifts all that follow."""
    bench = make_bench(model=str(folders(name)), pooling="per-token")
    found = bench.embed(bench.file(fasta([("a", "MKJ*XTTJJAA"), ("b", "mkv")])))
    assert found.columns["offsets"].tolist() == [0, 11, 14]
    assert found.metadata["counts"]["unknown_residues"] == 4
    alone = loaded(folders(name), pooling="per-token").encode_tokens(["MKV"])[0]
    np.testing.assert_allclose(found.rows[11:], alone, atol=1e-4)


def test_ankh_has_the_ids_of_its_authors_usage(folders: Callable[[str], Path]) -> None:
    """They give its tokenizer a list of residues."""
    folder = folders("Ankh")
    tokenizer, own = AutoTokenizer.from_pretrained(folder), load_tokenizer("auto", str(folder))
    for text in published.PROTEINS:
        theirs = tokenizer([list(text)], is_split_into_words=True)["input_ids"][0]
        assert [*own.read(text.encode())[0], 1] == theirs  # type: ignore[misc]


def test_prott5_reads_rare_residues_as_x(folders: Callable[[str], Path]) -> None:
    encoder = loaded(folders("ProtT5"))
    with pytest.warns(UserWarning, match="4 letters are outside"):
        rows = encoder.encode(["MKUZOB", "MKXXXX"])
    assert np.array_equal(rows[0], rows[1])


def test_without_sentencepiece_planning_says_what_to_install(
    folders: Callable[[str], Path], tmp_path: Path
) -> None:
    """In a new process, because transformers remembers what is installed."""
    (tmp_path / "x.faa").write_text(fasta([("a", "MKV")]))
    code = (
        "import sys, importlib.util as u; real = u.find_spec; "
        "hidden = 'sentencepiece'; "
        "u.find_spec = lambda name, *a: None if name.startswith(hidden) else real(name, *a); "
        "sys.modules['sentencepiece'] = None; from fsqueue.cli import main; main()"
    )
    words = ["plan", "embed", str(tmp_path / "pool"), str(tmp_path / "x.faa"), "--model"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words, str(folders("ProtT5"))],
        capture_output=True, text=True, cwd=tmp_path, timeout=120,
    )  # fmt: skip
    assert done.returncode == 4, done.stdout + done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert "spiece.model: is read by the library sentencepiece, which is not installed" in line
    assert "pip install 'fsqueue[sentencepiece]'" in line
    assert not (tmp_path / "pool").exists()
