"""`fsqueue embed`, `python -m embed` and `from embed import Encoder`, as a user runs them."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

import embed
from embed.cli import embed as command
from embed.outputs.claim_file import read
from fsqueue import FsqueueError, UsageError
from fsqueue.cli import cli
from tests.support.dnabert import write_model
from tests.support.fake_embeddings import embed_all, fasta, plan_embeddings, proteins, rows_of

SEQUENCES = {f"s{n}": "MKVLAAGIVGLCAKAY"[n % 7 :] * (n % 9 + 1) for n in range(40)}


@pytest.fixture(scope="session")
def tiny_dnabert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-dnabert"
    write_model(folder)
    return folder


def run(*words: Any) -> Result:
    """Run a command that must succeed."""
    result = CliRunner().invoke(command, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def dna(bases: int, seed: int) -> str:
    return "".join(random.Random(seed).choices("ACGT", k=bases))


# ---- prepare ----


def test_prepare_reports_its_counts(tmp_path: Path) -> None:
    path = fasta(tmp_path / "x.fa", {"a": dna(900, 1), "b": "A" * 400})
    result = run("prepare", path, "-o", tmp_path / "out", "--chunk", 300)
    assert "2 contigs, 5 chunks" in result.output
    assert (tmp_path / "out" / "x_nucleotide.fa").exists()
    assert (tmp_path / "out" / "x_protein.faa").exists()
    again = run("prepare", path, "--chunk", 300, "--split", 2, "--json")
    facts = json.loads(again.stdout)
    assert (facts["contigs"], facts["chunks"]) == (2, 5)
    assert facts["nucleotides"] == str(tmp_path / "x_nucleotide.fa")
    assert (tmp_path / "x_protein" / "output_1.fa").exists()


# ---- merge ----


def test_merge_reports_what_it_wrote(tmp_path: Path) -> None:
    embed_all(tmp_path / "pool", [fasta(tmp_path / "a.faa", proteins(3))])
    result = run("merge", tmp_path / "pool", tmp_path / "out.npz")
    assert result.stdout == f"3 sequences x 5 numbers, of tiny_esm2: {tmp_path}/out.npz\n"
    facts = json.loads(run("merge", tmp_path / "pool", tmp_path / "out.npz", "--json").stdout)
    assert facts["rows"] == 3
    assert facts["files"] == [str(tmp_path / "out.npz")]


def test_merged_safetensors_are_read_like_any_output(tmp_path: Path) -> None:
    sequences = proteins(30)
    embed_all(tmp_path / "pool", [fasta(tmp_path / "a.faa", sequences)])
    run("merge", tmp_path / "pool", tmp_path / "out.safetensors")
    table = embed.read(tmp_path / "out.safetensors")
    assert table.ids == list(sequences)
    assert np.array_equal(table.rows, rows_of(sequences, 5))
    assert table.metadata["counts"] == {"sequences": 30}


def test_the_pool_may_come_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed_all(tmp_path / "pool", [fasta(tmp_path / "a.faa", proteins(3))])
    monkeypatch.setenv("FSQUEUE_POOL", str(tmp_path / "pool"))
    run("merge", tmp_path / "out.npz")
    assert (tmp_path / "out.npz").exists()


def test_sequences_without_a_partner_are_reported_on_stderr(tmp_path: Path) -> None:
    embed_all(tmp_path / "pool", [fasta(tmp_path / "a.faa", {"a": "MK", "b": "MV"})])
    embed_all(tmp_path / "pool", [fasta(tmp_path / "a.fa", {"a": "ACGT"})], "dnabert")
    result = run("merge", tmp_path / "pool", tmp_path / "out.npz")
    assert "fsqueue: 1 sequence has a row from only one of the models" in result.stderr
    assert result.stdout.startswith("1 sequence x 8 numbers, of tiny_dna and tiny_esm2")


def test_an_unfinished_pool_ends_with_its_own_exit_status(tmp_path: Path) -> None:
    plan_embeddings(tmp_path / "pool", [fasta(tmp_path / "a.faa", proteins(3))])
    with pytest.raises(FsqueueError) as caught:
        run("merge", tmp_path / "pool", tmp_path / "out.npz")
    assert caught.value.exit_status == 5


def test_one_out_is_needed(tmp_path: Path) -> None:
    for words in ([tmp_path], [tmp_path, "a", "b"]):
        with pytest.raises(UsageError, match="give one OUT"):
            run("merge", *words)


# ---- file ----


def test_one_file_without_a_pool_gives_what_a_pool_gives(
    tmp_path: Path, tiny_model: Path, make_bench: Callable[..., Any]
) -> None:
    bench = make_bench()
    path = fasta(tmp_path / "x.faa", SEQUENCES)
    result = run("file", path, "--model", tiny_model, "-o", tmp_path / "out.safetensors")
    assert f"40 sequences: {tmp_path}/out.safetensors" in result.stdout
    table, expected = read(tmp_path / "out.safetensors"), bench.embed(str(path))
    assert table.ids == expected.ids
    assert np.array_equal(table.rows, expected.rows)
    assert table.columns["lengths"].tolist() == expected.columns["lengths"].tolist()
    assert table.metadata["weights"] == bench.options["weights"]
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.slow
@pytest.mark.parametrize("format", ["npz", "h5", "parquet", "virnucpro"])
def test_one_file_in_every_format(tmp_path: Path, tiny_model: Path, format: str) -> None:
    path = fasta(tmp_path / "x.faa", SEQUENCES)
    run("file", path, "--model", tiny_model, "--format", format)
    assert (tmp_path / f"x.{format}").stat().st_size > 0
    if format == "virnucpro":
        assert len(torch.load(tmp_path / "x.virnucpro", weights_only=True)["proteins"]) == 40


def test_one_file_with_a_row_for_each_token(tmp_path: Path, tiny_model: Path) -> None:
    path = fasta(tmp_path / "x.faa", {"a": "MKV", "b": "MK"})
    run("file", path, "--model", tiny_model, "--pooling", "per-token")
    table = read(tmp_path / "x.safetensors")
    assert table.rows.shape == (5, 32)
    assert table.columns["offsets"].tolist() == [0, 3, 5]
    with pytest.raises(UsageError, match="cannot hold a row for each token"):
        run("file", path, "--model", tiny_model, "--pooling", "per-token", "--format", "npz")


def test_an_error_in_one_file_leaves_nothing_behind(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "x.faa").write_text("no FASTA")
    with pytest.raises(FsqueueError, match="is not FASTA"):
        run("file", tmp_path / "x.faa", "--model", tiny_model)
    assert [p.name for p in tmp_path.iterdir()] == ["x.faa"]


@pytest.mark.slow
def test_python_m_embed_embeds_a_file(tmp_path: Path, tiny_model: Path) -> None:
    path = fasta(tmp_path / "x.faa", {"a": "MKV"})
    words = [sys.executable, "-m", "embed", str(path), "--model", str(tiny_model)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"1 sequence: {tmp_path}/x.safetensors\n")
    done = subprocess.run([*words[:3], "none", *words[4:]], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("embed: ")
    assert "cannot be read" in done.stderr


# ---- start-up ----


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from embed.cli import embed\n"
        "for words in (['--help'], ['file', '--help'], ['merge', '--help']):\n"
        "    assert CliRunner().invoke(embed, words).exit_code == 0\n"
        "heavy = {'torch', 'transformers', 'numpy', 'safetensors', 'h5py', 'pyarrow'}\n"
        "print(sorted(heavy & {name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_fsqueue_knows_the_command() -> None:
    result = CliRunner().invoke(cli, ["embed", "--help"])
    assert result.exit_code == 0
    assert "prepare" in result.output


# ---- Python ----


def test_an_encoder_gives_float32_rows_in_the_order_given(
    tiny_model: Path, tmp_path: Path, make_bench: Callable[..., Any]
) -> None:
    encoder = embed.Encoder.load(str(tiny_model))
    vectors = encoder.encode([*SEQUENCES.values(), "", " mk v\n*"])
    assert (vectors.dtype, vectors.shape) == (np.float32, (42, 32))
    expected = make_bench().embed(str(fasta(tmp_path / "x.faa", SEQUENCES)))
    assert np.abs(vectors[:40] - expected.rows).max() < 1e-5
    assert not vectors[40].any()
    assert np.abs(vectors[41] - encoder.encode(["MKV"])[0]).max() < 1e-5
    assert encoder.encode([]).shape == (0, encoder.width)


def test_an_encoder_has_the_options_of_a_plan(tiny_model: Path, tiny_dnabert: Path) -> None:
    cut = embed.Encoder.load(str(tiny_model), max_residues=10)
    long = "MKVLAAGIVGLCAKAY"
    assert np.abs(cut.encode([long]) - cut.encode([long[:10]])).max() < 1e-6
    strict = embed.Encoder.load(str(tiny_model), max_residues=10, long="fail")
    with pytest.raises(UsageError, match="longer than --max-residues 10"):
        strict.encode([long])
    half = embed.Encoder.load(str(tiny_dnabert), dtype="bfloat16", pooling="cls")
    assert half.encode([dna(300, 1)]).dtype == np.float32


def test_only_public_names_are_looked_up() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        embed.nothing  # noqa: B018
    assert set(embed.__all__) == {"Embeddings", "Encoder", "read"}


# ---- from contigs to features, through real workers ----


@pytest.mark.slow
def test_contigs_become_features_of_both_models_in_a_pool(
    tmp_path: Path, tiny_model: Path, tiny_dnabert: Path
) -> None:
    """prepare, plan twice, two workers, merge; every frame once, in every form."""
    genome = Path(__import__("pyrodigal").__file__).parent / "tests" / "data"
    contigs = genome / "GCF_001457455.1_NCTC11397_genomic_100kb.fna.gz"
    if not contigs.exists():
        contigs = fasta(tmp_path / "contigs.fna", {f"c{n}": dna(3000, n) for n in range(20)})
    facts = json.loads(run("prepare", contigs, "-o", tmp_path, "--chunk", 300, "--json").stdout)
    assert facts["frames"] > 100
    pool = tmp_path / "pool"
    for path, model in ((facts["nucleotides"], tiny_dnabert), (facts["proteins"], tiny_model)):
        planned = fsqueue("plan", "embed", pool, path, "--model", model, "--gpus", "cpux2")
        assert planned.returncode == 0, planned.stderr
    workers = [start("work", pool, "--spool", f"cpu{n}", "--others-ok") for n in range(2)]
    assert [worker.wait(timeout=300) for worker in workers] == [0, 0]
    merged = fsqueue("embed", "merge", pool, tmp_path / "out.safetensors")
    assert merged.returncode == 0, merged.stderr
    table = read(tmp_path / "out.safetensors")
    headers = Path(facts["proteins"]).read_text().splitlines()[::2]
    assert table.ids == [header[1:] for header in headers]
    assert table.rows.shape == (facts["frames"], 48 + 32)
    assert np.isfinite(table.rows).all()
    run("merge", pool, tmp_path / "virnucpro", "--format", "virnucpro")
    (path,) = (tmp_path / "virnucpro").glob("*_merged.pt")
    found = torch.load(path, weights_only=True)
    assert found["ids"] == table.ids
    assert np.array_equal(found["data"].numpy(), table.rows)


def fsqueue(*words: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fsqueue", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True)


def start(*words: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "fsqueue", *map(str, words)]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


# ---- R36, R37, R40, R42: what is refused before the first batch ----


def refused(match: str, *words: Any) -> None:
    """Run a command that must be refused, with exit status 2."""
    with pytest.raises(UsageError, match=match) as caught:
        run(*words)
    assert caught.value.exit_status == 2


@pytest.mark.parametrize("force", [[], ["--force"]])
@pytest.mark.parametrize("name", ["r.faa", "link", "./r.faa"])
def test_R36_one_file_is_never_replaced_by_its_own_output(
    tmp_path: Path, tiny_model: Path, name: str, force: list[str]
) -> None:
    path = fasta(tmp_path / "r.faa", {"a": "MKV"})
    (tmp_path / "link").symlink_to(path)
    before = path.read_bytes()
    words = ["file", path, "--model", tiny_model, "--format", "safetensors", *force]
    match = "is the input" if name == "link" else "Known are"
    refused(match, *words, "-o", tmp_path / name)
    assert path.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["link", "r.faa"]


def test_R37_one_file_replaces_nothing_that_is_not_ours(tmp_path: Path, tiny_model: Path) -> None:
    path = fasta(tmp_path / "x.faa", {"a": "MKV"})
    (tmp_path / "x.safetensors").write_bytes(b"weights of mine")
    words = ["file", path, "--model", tiny_model, "--force"]
    refused("never replaces", *words)  # the default output, too
    assert (tmp_path / "x.safetensors").read_bytes() == b"weights of mine"
    (tmp_path / "x.safetensors").unlink()
    for _ in range(2):
        run(*words)


@pytest.mark.parametrize("ending", ["npy", "pt", "csv"])
def test_R40_the_ending_of_one_file_decides_its_format(
    tmp_path: Path, tiny_model: Path, ending: str
) -> None:
    path = fasta(tmp_path / "x.faa", {"a": "MKV"})
    refused("Known are", "file", path, "--model", tiny_model, "-o", tmp_path / f"x.{ending}")
    run("file", path, "--model", tiny_model, "-o", tmp_path / "x.npz")
    assert np.load(tmp_path / "x.npz")["ids"].tolist() == ["a"]
    words = ["file", path, "--model", tiny_model, "-o", tmp_path / "x.npz", "--format", "parquet"]
    refused("contradicts the ending", *words)


def test_R42_what_can_be_refused_is_refused_before_the_model_is_loaded(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from embed.engine import devices
    from embed.outputs import formats

    path = fasta(tmp_path / "x.faa", {f"s{n}": "MKV" for n in range(5)})
    monkeypatch.setattr(devices, "choose_device", lambda warn: pytest.fail("a model was loaded"))
    words = ["file", path, "--model", tiny_model]
    refused("row for each token", *words, "--pooling", "per-token", "-o", tmp_path / "x.parquet")
    refused("is not a directory", *words, "-o", f"{path}/x.npz")
    refused("is a directory", *words, "-o", tmp_path, "--format", "npz")
    monkeypatch.setitem(formats.EXTRAS, "h5", "no_such_library")
    with pytest.raises(FsqueueError, match="is not installed"):
        run(*words, "-o", tmp_path / "x.h5")
    monkeypatch.setattr("embed.handlers.embed.VIRNUCPRO_ROWS_MAX", 3)
    with pytest.raises(FsqueueError, match="holds at most 3"):
        run(*words, "--format", "virnucpro")
    assert os.listdir(tmp_path) == ["x.faa"]


def test_R42_a_plan_whose_table_could_not_be_written_is_refused(
    tmp_path: Path, tiny_model: Path
) -> None:
    path = fasta(tmp_path / "x.faa", {"a": "MKV"})
    words = ["plan", "embed", str(tmp_path / "pool"), str(path), "--model", str(tiny_model)]
    result = CliRunner().invoke(cli, [*words, "--pooling", "per-token", "--format", "parquet"])
    assert isinstance(result.exception, UsageError)
    assert not (tmp_path / "pool").exists()


def test_R37_prepared_sequences_replace_only_their_own(tmp_path: Path) -> None:
    path = fasta(tmp_path / "x.fa", {"c": dna(900, 1)})
    mine = tmp_path / "x_protein.faa"
    mine.write_text(">mine\nMKV\n")
    refused("never replaces", "prepare", path)
    assert mine.read_text() == ">mine\nMKV\n"
    mine.unlink()
    for _ in range(2):
        run("prepare", path)


def test_R41_merge_offers_the_choice_on_the_command_line(tmp_path: Path) -> None:
    path = fasta(tmp_path / "a.faa", {"a": "MKV"})
    for pooling in ("mean", "cls"):
        embed_all(tmp_path / "pool", [path], pooling=pooling)
    out = tmp_path / "out.npz"
    refused(r"plan 1 \(pooling=mean\), plan 2 \(pooling=cls\)", "merge", tmp_path / "pool", out)
    run("merge", tmp_path / "pool", out, "--plan", "2")
    run("merge", tmp_path / "pool", out, "--option", "pooling=mean", "--force")
    refused("is not NAME=VALUE", "merge", tmp_path / "pool", out, "--option", "pooling")
