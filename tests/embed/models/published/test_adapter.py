"""A LoRA adapter is merged: the vectors of peft's own unmerged model, one input at a time."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from embed import Encoder
from embed.query import search_store
from fsqueue import ClaimImpossible, NotSupportedError, UsageError
from tests.embed.conftest import SHAPE, Bench, fasta
from tests.support import dnabert, generic_models
from tests.support import published_models as published

pytestmark = pytest.mark.usefixtures("one_thread")

MakeBench = Callable[..., Bench]
PROTEINS = ["MKTAYIAKQRQISFVKSHFSRQ", "MAGW", "GSHMLEDPVW"]


def train(model: Any, folder: Path, **options: Any) -> Any:
    """Return a model with an adapter whose weights matter, and save the adapter."""
    torch.manual_seed(11)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=16, **options)).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.2)
    adapted.save_pretrained(folder)
    return adapted


def esm_ids(text: str) -> list[int]:
    vocabulary = published.ESM_VOCABULARY.split()
    return [0, *(vocabulary.index(letter) for letter in text), 2]


def mean(adapted: Any, ids: list[int], inner: slice) -> np.ndarray:
    """The mean of the last states of one input."""
    with torch.no_grad():
        output = adapted(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids)),
            output_hidden_states=True,
        )
    vector: np.ndarray = output.hidden_states[-1][0, inner].mean(0).numpy()
    return vector


@pytest.fixture(scope="module")
def esm2(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Any]:
    """An ESM-2, and an adapter that was trained on it as a masked LM."""
    root = tmp_path_factory.mktemp("adapted")
    published.save(hf.EsmForMaskedLM(hf.EsmConfig(**SHAPE)), root / "tiny_esm2")
    model = hf.EsmForMaskedLM.from_pretrained(root / "tiny_esm2")
    modules = ["query", "value", "intermediate.dense"]
    return root / "tiny_esm2", root / "lora", train(model, root / "lora", target_modules=modules)


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"use_dora": True}])
def test_esm2_with_an_adapter_gives_peft_s_vectors(
    esm2: tuple[Path, Path, Any], tmp_path: Path, options: dict[str, Any]
) -> None:
    model = hf.EsmForMaskedLM.from_pretrained(esm2[0])
    adapted = train(model, tmp_path / "lora", target_modules=["query", "key"], **options)
    found = Encoder.load(str(esm2[0]), adapter=str(tmp_path / "lora")).encode(PROTEINS)
    expected = [mean(adapted, esm_ids(text), slice(1, -1)) for text in PROTEINS]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    plain = Encoder.load(str(esm2[0])).encode(PROTEINS)
    assert np.abs(found - plain).max() > 0.01


@pytest.mark.parametrize(
    ("name", "wrapper", "modules"),
    [
        ("bert", hf.BertForMaskedLM, ["query", "attention.output.dense"]),
        ("bert", hf.BertModel, ["query"]),
        ("roberta", hf.RobertaForMaskedLM, "all-linear"),
        ("gpt2", hf.GPT2Model, ["c_attn"]),
    ],
)
def test_models_of_transformers_with_an_adapter_give_peft_s_vectors(
    tmp_path: Path, name: str, wrapper: Any, modules: Any
) -> None:
    folder = generic_models.write_model(tmp_path / name, name)
    adapted = train(wrapper.from_pretrained(folder), tmp_path / "lora", target_modules=modules)
    encoder = Encoder.load(str(folder), adapter=str(tmp_path / "lora"), pooling="mean-all")
    text = "A worker takes a claim."
    tokenizer = encoder._tokenizer
    ids = [*tokenizer.frame[0], *tokenizer.read(text.encode())[0], *tokenizer.frame[1]]  # type: ignore[attr-defined, misc]
    expected = mean(adapted, [int(id) for id in ids], slice(None))
    np.testing.assert_allclose(encoder.encode([text])[0], expected, atol=1e-4)


def test_of_an_encoder_decoder_s_adapter_the_encoder_s_part_is_merged(tmp_path: Path) -> None:
    folder = generic_models.write_model(tmp_path / "t5", "t5")
    model = hf.T5ForConditionalGeneration.from_pretrained(folder)
    adapted = train(model, tmp_path / "lora", target_modules=["q", "v"])
    encoder = Encoder.load(str(folder), adapter=str(tmp_path / "lora"), pooling="mean-all")
    tokenizer = encoder._tokenizer
    ids = [*tokenizer.read(b"A worker takes a claim.")[0], *tokenizer.frame[1]]  # type: ignore[attr-defined, misc]
    with torch.no_grad():
        inner = adapted.base_model.model.get_encoder()
        expected = inner(input_ids=torch.tensor([[int(id) for id in ids]])).last_hidden_state
    found = encoder.encode(["A worker takes a claim."])[0]
    np.testing.assert_allclose(found, expected[0].mean(0).numpy(), atol=1e-4)


def test_a_plan_pins_the_adapter_and_outputs_name_it(
    esm2: tuple[Path, Path, Any], make_bench: MakeBench
) -> None:
    model, lora, _ = esm2
    plain, bench = make_bench(model=str(model)), make_bench(model=str(model), adapter=str(lora))
    assert bench.options["adapter_hash"].startswith("sha256:")
    assert bench.options["weights"] == (
        f"{plain.options['weights']}+adapter:{bench.options['adapter_hash']}"
    )
    assert bench.handler.describe(bench.options)[0] == f"adapter: {lora}, merged"
    path = bench.file(fasta([("a", PROTEINS[0])]))
    (item,), (other,) = bench.plan(path), plain.plan(path)
    assert item.kind != other.kind
    found = bench.embed(path)
    assert found.metadata["adapter_hash"] == bench.options["adapter_hash"]
    assert np.abs(found.rows - plain.embed(path).rows).max() > 0.01
    assert "adapter" not in plain.options


def test_half_precision_and_its_fallback_have_the_adapter_too(
    esm2: tuple[Path, Path, Any], make_bench: MakeBench
) -> None:
    model, lora, adapted = esm2
    bench = make_bench(model=str(model), adapter=str(lora), dtype="bfloat16")
    expected = mean(adapted, esm_ids(PROTEINS[0]), slice(1, -1))
    found = bench.embed(bench.file(fasta([("a", PROTEINS[0])]))).rows[0]
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()
    engine, _ = bench.handler.engine(bench.options, bench.warnings.append)
    assert engine._load_float32 is not None
    (row,) = engine._load_float32().embed([next(iter(_tokenized(bench)))], bench.warnings.append)
    np.testing.assert_allclose(row, expected, atol=1e-4)


def _tokenized(bench: Bench) -> Any:
    from embed.engine.sequence_reader import SequenceReader
    from embed.inputs.fasta import Record

    tokenizer = bench.handler.tokenizer(bench.options)
    return SequenceReader([Record("a", PROTEINS[0].encode())], tokenizer, bench.options)


def test_an_adapter_that_changed_is_refused_and_one_that_is_gone_is_left_to_others(
    esm2: tuple[Path, Path, Any], make_bench: MakeBench, tmp_path: Path
) -> None:
    model, _, _ = esm2
    train(hf.EsmModel.from_pretrained(model), tmp_path / "lora", target_modules=["query"])
    bench = make_bench(model=str(model), adapter=str(tmp_path / "lora"))
    (item,) = bench.plan(bench.file(fasta([("a", PROTEINS[0])])))
    weights = load_file(tmp_path / "lora/adapter_model.safetensors")
    save_file({k: 2 * v for k, v in weights.items()}, tmp_path / "lora/adapter_model.safetensors")
    with pytest.raises(ClaimImpossible, match="the adapter changed since it was planned"):
        bench.run(item)
    (tmp_path / "lora/adapter_model.safetensors").unlink()
    with pytest.raises(NotSupportedError, match="this machine lacks the planned adapter"):
        bench.run(item)


# ---- what is refused, or said, when it is planned ----


def test_an_adapter_of_another_model_is_refused(
    esm2: tuple[Path, Path, Any], tmp_path: Path, make_bench: MakeBench
) -> None:
    model, lora, _ = esm2
    generic_models.write_model(tmp_path / "bert", "bert")
    with pytest.raises(UsageError, match="trained on another model than bert, which has no esm.*"):
        make_bench(model=str(tmp_path / "bert"), adapter=str(lora))
    larger = hf.EsmModel(hf.EsmConfig(**SHAPE | {"hidden_size": 48, "num_attention_heads": 4}))
    larger.save_pretrained(tmp_path / "larger")
    with pytest.raises(UsageError, match="of another size .it says its base is .*tiny_esm2"):
        make_bench(model=str(tmp_path / "larger"), adapter=str(lora))
    dnabert.write_model(tmp_path / "dnabert")
    with pytest.raises(UsageError, match="--adapter: DNABERT is computed by code"):
        make_bench(model=str(tmp_path / "dnabert"), adapter=str(lora))


def test_another_name_of_the_base_and_a_classifier_are_said(
    esm2: tuple[Path, Path, Any], tmp_path: Path, make_bench: MakeBench
) -> None:
    model, _, _ = esm2
    classifier = hf.EsmForSequenceClassification.from_pretrained(model)
    classifier.name_or_path = "lab/other"
    classifier.config._name_or_path = "lab/other"
    train(classifier, tmp_path / "lora", target_modules=["key"], task_type="SEQ_CLS")
    bench = make_bench(model=str(model), adapter=str(tmp_path / "lora"))
    lines = bench.handler.describe(bench.options)
    assert any("its base is lab/other; its layers fit tiny_esm2" in line for line in lines), lines
    assert any("besides layers is not used: classifier" in line for line in lines), lines
    bench.embed(bench.file(fasta([("a", PROTEINS[0])])))


def test_a_folder_that_is_no_adapter_of_a_known_type_is_refused(
    esm2: tuple[Path, Path, Any], tmp_path: Path, make_bench: MakeBench
) -> None:
    model, _, _ = esm2
    with pytest.raises(UsageError, match="is not a folder that peft saved"):
        make_bench(model=str(model), adapter=str(tmp_path))
    config = peft.IA3Config(target_modules=["key"], feedforward_modules=[])
    peft.get_peft_model(hf.EsmModel.from_pretrained(model), config).save_pretrained(tmp_path / "a")
    with pytest.raises(UsageError, match="of type IA3; those of type LORA are merged here"):
        make_bench(model=str(model), adapter=str(tmp_path / "a"))
    (tmp_path / "b").mkdir()
    save_file({}, tmp_path / "b/adapter_model.safetensors")
    (tmp_path / "b/adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(UsageError, match="changes no module"):
        make_bench(model=str(model), adapter=str(tmp_path / "b"))


def test_without_peft_planning_says_what_to_install(
    esm2: tuple[Path, Path, Any], tmp_path: Path
) -> None:
    (tmp_path / "x.faa").write_text(fasta([("a", "MKV")]))
    code = (
        "import importlib.util as u; real = u.find_spec; "
        "u.find_spec = lambda name, *a: None if name == 'peft' else real(name, *a); "
        "from fsqueue.cli import main; main()"
    )
    words = ["plan", "embed", str(tmp_path / "pool"), str(tmp_path / "x.faa")]
    done = subprocess.run(
        [sys.executable, "-c", code, *words, "--model", str(esm2[0]), "--adapter", str(esm2[1])],
        capture_output=True, text=True, cwd=tmp_path, timeout=120,
    )  # fmt: skip
    assert done.returncode == 4, done.stdout + done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert "is merged by the library peft, which is not installed" in line
    assert "pip install 'fsqueue[peft]'" in line
    assert not (tmp_path / "pool").exists()


# ---- with a store ----


def test_a_store_keeps_a_model_with_an_adapter_apart_and_cannot_embed_queries_for_it(
    esm2: tuple[Path, Path, Any], make_bench: MakeBench, tmp_path: Path
) -> None:
    model, lora, _ = esm2
    store = str(tmp_path / "store")
    plain = make_bench(model=str(model), store=store)
    adapted = make_bench(model=str(model), adapter=str(lora), store=store, collection="adapted")
    both = make_bench(model=str(model), adapter=str(lora), store=store)
    path = plain.file(fasta([("a", PROTEINS[0])]))
    without, found, beside = (bench.embed(path).rows for bench in (plain, adapted, both))
    assert np.abs(without - found).max() > 0.01
    np.testing.assert_array_equal(found, beside)
    assert len({folder.name for folder in (tmp_path / "store/default").iterdir()}) == 2
    with pytest.raises(UsageError, match="was filled by a model with an adapter"):
        search_store(store, path, 1, collection="adapted", model=None, weights=None)
