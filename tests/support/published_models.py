"""Small random models in the architecture and with the files of published ones, and their usage.

`usage` is what a model's card, or its users' scripts, tell to type: one input at a time, with the
model's own tokenizer. It shares no code with `embed`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as hf

from tests.support import generic_models

PROTEINS = [
    "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEKAVQ",
    "MAGW",
    "GSHMLEDPVUZOBXC",
    "MKVLAAGIVGLCAKAY" * 4,
]
DNA = ["ACGTACGTACGTTAGGGGGG", "TTTTTTACGTAC", "ACGTACTTTTTTGTACGTA", "GGGGGGNACGTAC"]
TEXTS = [text for text in generic_models.TEXTS if text]
RESIDUES = "LAGVERSTIDPKQNFYMHWCXBUZO"
ESM_VOCABULARY = (
    "<cls> <pad> <eos> <unk> L A G V S E R T I D P K Q N F Y M H W C X B U Z O . - <null_1> <mask>"
)
SIZE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}


@dataclass(frozen=True)
class Published:
    """A model's files, inputs, and what its users compute."""

    write: Callable[[Path], None]
    inputs: list[str]
    text: Callable[[str], str]
    """What users give to its tokenizer."""
    usage: Callable[[torch.Tensor], torch.Tensor]
    """From the states of one input, (tokens, width), to its vector."""
    tokenizer: Any = hf.AutoTokenizer
    model: Any = hf.AutoModel
    run: Callable[[Path, torch.Tensor], torch.Tensor] | None = None
    """What computes the states of one input, where transformers has no such model."""


def save(model: Any, folder: Path) -> None:
    """Save a model with weights large enough that every part of it matters."""
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)


# ---- proteins ----


def esm_tokenizer(folder: Path) -> None:
    (folder / "vocab.txt").write_text("\n".join(ESM_VOCABULARY.split()))
    settings = {"tokenizer_class": "EsmTokenizer", "model_max_length": 1024}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def esm1b(folder: Path) -> None:
    config = hf.EsmConfig(
        **SIZE, vocab_size=33, pad_token_id=1, mask_token_id=32, max_position_embeddings=128,
        position_embedding_type="absolute", emb_layer_norm_before=True, token_dropout=True,
    )  # fmt: skip
    save(hf.EsmForMaskedLM(config), folder)
    esm_tokenizer(folder)


def esm1v(folder: Path) -> None:
    config = hf.EsmConfig(
        **SIZE, vocab_size=33, pad_token_id=1, mask_token_id=32, max_position_embeddings=128,
        position_embedding_type="absolute", emb_layer_norm_before=False, token_dropout=True,
    )  # fmt: skip
    save(hf.EsmForMaskedLM(config), folder)
    esm_tokenizer(folder)


def esmc(folder: Path) -> None:
    save(hf.EsmcForMaskedLM(hf.EsmcConfig(**SIZE, num_key_value_heads=4)), folder)
    hf.EsmcTokenizer().save_pretrained(folder)


def protbert(folder: Path) -> None:
    save(hf.BertForMaskedLM(hf.BertConfig(**SIZE, vocab_size=30)), folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *RESIDUES]
    (folder / "vocab.txt").write_text("\n".join(words))
    settings = {"do_lower_case": False, "tokenizer_class": "BertTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def sentencepiece_of_residues(folder: Path, extra: list[str]) -> None:
    """ProtT5's: a token for each residue after a blank."""
    from sentencepiece import sentencepiece_model_pb2 as pb

    model = pb.ModelProto()
    special = (("<pad>", 3), ("</s>", 3), ("<unk>", 2))
    pieces = [*special, *((f"▁{letter}", 1) for letter in RESIDUES)]
    for number, (piece, kind) in enumerate(pieces):
        model.pieces.add(piece=piece, score=-0.1 * number, type=kind)
    model.trainer_spec.model_type = 1
    model.trainer_spec.unk_id, model.trainer_spec.pad_id = 2, 0
    model.trainer_spec.eos_id, model.trainer_spec.bos_id = 1, -1
    model.normalizer_spec.add_dummy_prefix = True
    model.normalizer_spec.remove_extra_whitespaces = True
    model.normalizer_spec.escape_whitespaces = True
    (folder / "spiece.model").write_bytes(model.SerializeToString())
    settings: dict[str, Any] = {
        "tokenizer_class": "T5Tokenizer", "do_lower_case": False, "extra_ids": 0,
        "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>",
    }  # fmt: skip
    if extra:
        settings["additional_special_tokens"] = extra
        added = {token: len(pieces) + n for n, token in enumerate(extra)}
        (folder / "added_tokens.json").write_text(json.dumps(added))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def t5_config() -> Any:
    return hf.T5Config(
        vocab_size=40,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        initializer_factor=3.0,
    )


def prott5(folder: Path) -> None:
    save(hf.T5EncoderModel(t5_config()), folder)
    sentencepiece_of_residues(folder, [])


def prott5_whole(folder: Path) -> None:
    save(hf.T5ForConditionalGeneration(t5_config()), folder)
    sentencepiece_of_residues(folder, [])


def prostt5(folder: Path) -> None:
    save(hf.T5EncoderModel(t5_config()), folder)
    sentencepiece_of_residues(folder, ["<fold2AA>", "<AA2fold>"])


def ankh(folder: Path) -> None:
    """Its vocabulary has a token for each residue, without blanks."""
    from tokenizers import Tokenizer, models, processors

    save(hf.T5EncoderModel(t5_config()), folder)
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces = [*special, *((letter, -0.1 * n) for n, letter in enumerate(RESIDUES))]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    as_it_is(folder)


# ---- DNA ----


def gena_lm(folder: Path) -> None:
    """The BigBird one, which transformers has: words of bases, upper-case only."""
    from tokenizers import Tokenizer, models, processors, trainers

    config = hf.BigBirdConfig(
        **SIZE, vocab_size=40, max_position_embeddings=130, attention_type="original_full"
    )
    save(hf.BigBirdForMaskedLM(config), folder)
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    trainer = trainers.BpeTrainer(vocab_size=40, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(["ACGTTGCAAGCTTAGC" * 9, "GGATCCGAATTCN" * 9], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    as_it_is(folder)


def nucleotide_transformer(folder: Path) -> None:
    config = hf.EsmConfig(
        **SIZE, vocab_size=16, pad_token_id=1, mask_token_id=2, max_position_embeddings=66,
        position_embedding_type="absolute", token_dropout=True,
    )  # fmt: skip
    save(hf.EsmForMaskedLM(config), folder)
    generic_models.six_mers(folder)
    tokens = (folder / "vocab.txt").read_text().splitlines()
    (folder / "vocab.txt").write_text("\n".join(t for t in tokens if t != "<eos>"))


def nucleotide_transformer_2(folder: Path) -> None:
    """Its weights are those of an ESM, but for the product before the gate, which is twice as
    wide, and has no bias."""
    config = hf.EsmConfig(
        **SIZE, vocab_size=16, pad_token_id=1, mask_token_id=2, max_position_embeddings=66,
        position_embedding_type="rotary", token_dropout=False, add_bias_fnn=False,
    )  # fmt: skip
    config.auto_map = {"AutoModelForMaskedLM": "modeling_esm.EsmForMaskedLM"}
    model = hf.EsmForMaskedLM(config)
    for layer in model.esm.encoder.layer:
        layer.intermediate.dense = torch.nn.Linear(32, 96, bias=False)
        layer.output.dense = torch.nn.Linear(48, 32, bias=False)
    save(model, folder)
    names_as_published(folder / "model.safetensors")
    generic_models.six_mers(folder)
    tokens = (folder / "vocab.txt").read_text().splitlines()
    (folder / "vocab.txt").write_text("\n".join(t for t in tokens if t != "<eos>"))


def names_as_published(path: Path) -> None:
    """Undo the names that today's transformers gives to the tensors of an ESM."""
    from safetensors.torch import load_file, save_file

    endings = {".gamma": ".weight", ".beta": ".bias"}
    found = {}
    for name, tensor in load_file(path).items():
        stem, dot, ending = name.rpartition(".")
        found[stem + endings.get(dot + ending, dot + ending)] = tensor
    frequencies = found.pop("esm.encoder.layer.*.attention.self.rotary_embeddings.inv_freq")
    for number in range(2):
        at = f"esm.encoder.layer.{number}.attention.self.rotary_embeddings.inv_freq"
        found[at] = frequencies.clone()
    save_file(found, path, {"format": "pt"})


def run_nucleotide_transformer_2(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    """Compute the last states by hand, one operation after the other."""
    from safetensors.torch import load_file

    weights = {
        k.removeprefix("esm."): v for k, v in load_file(folder / "model.safetensors").items()
    }

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scale = torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-12)
        return centred / scale * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    x = weights["embeddings.word_embeddings.weight"][ids]
    frequencies = 10_000.0 ** (-torch.arange(0, 8, 2) / 8)
    angles = torch.arange(len(ids))[:, None] * frequencies
    cosine, sine = torch.cos(angles).repeat(1, 2), torch.sin(angles).repeat(1, 2)

    def rotate(part: torch.Tensor) -> torch.Tensor:
        return part * cosine + torch.cat([-part[:, 4:], part[:, :4]], 1) * sine

    for number in range(2):
        at = f"encoder.layer.{number}"
        y = norm(x, f"{at}.attention.LayerNorm")
        query, key, value = (
            linear(y, f"{at}.attention.self.{name}") for name in ("query", "key", "value")
        )
        heads = []
        for head in range(4):
            part = slice(8 * head, 8 * head + 8)
            scores = rotate(query[:, part]) @ rotate(key[:, part]).T / 8**0.5
            heads.append(torch.softmax(scores, -1) @ value[:, part])
        x = x + linear(torch.cat(heads, 1), f"{at}.attention.output.dense")
        wide = norm(x, f"{at}.LayerNorm") @ weights[f"{at}.intermediate.dense.weight"].T
        gate, up = wide[:, :48], wide[:, 48:]
        x = x + (gate / (1 + torch.exp(-gate)) * up) @ weights[f"{at}.output.dense.weight"].T
    return norm(x, "encoder.emb_layer_norm_after")


# ---- texts ----


def as_it_is(folder: Path) -> None:
    """Make transformers read tokenizer.json alone, without a class of the architecture."""
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def modernbert(folder: Path) -> None:
    generic_models.write_model(folder, "modernbert")


def xlm_roberta(folder: Path) -> None:
    config = hf.XLMRobertaConfig(**SIZE, vocab_size=300, max_position_embeddings=130)
    save(hf.XLMRobertaModel(config), folder)
    generic_models.byte_level(folder)
    as_it_is(folder)


def qwen3(folder: Path) -> None:
    config = hf.Qwen3Config(
        **SIZE, vocab_size=300, num_key_value_heads=2, head_dim=8, max_position_embeddings=128
    )
    save(hf.Qwen3ForCausalLM(config), folder)
    from tokenizers import Tokenizer, processors

    generic_models.byte_level(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 2)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    as_it_is(folder)


def embedding_gemma(folder: Path) -> None:
    config = hf.Gemma3TextConfig(
        **SIZE, vocab_size=300, num_key_value_heads=1, head_dim=8, max_position_embeddings=128,
        use_bidirectional_attention=True, sliding_window=16,
        layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    save(hf.Gemma3TextModel(config), folder)
    generic_models.byte_level(folder)
    as_it_is(folder)


def eurobert(folder: Path) -> None:
    config = hf.EuroBertConfig(
        **SIZE, vocab_size=300, num_key_value_heads=2, max_position_embeddings=128, pad_token_id=1,
        bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    save(hf.EuroBertModel(config), folder)
    generic_models.byte_level(folder)


OTHERS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "ALBERT": (hf.AlbertConfig, hf.AlbertModel, {"embedding_size": 16}),
    "BigBird": (hf.BigBirdConfig, hf.BigBirdModel, {"attention_type": "original_full"}),
    "DeBERTa": (hf.DebertaV2Config, hf.DebertaV2Model, {"relative_attention": True}),
    "DistilBERT": (
        hf.DistilBertConfig, hf.DistilBertModel,
        {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
    ),
    "ELECTRA": (hf.ElectraConfig, hf.ElectraModel, {"embedding_size": 16}),
    "GTE": (hf.GteConfig, hf.GteModel, {}),
    "Jina v3": (hf.JinaEmbeddingsV3Config, hf.JinaEmbeddingsV3Model, {}),
    "MPNet": (hf.MPNetConfig, hf.MPNetModel, {"pad_token_id": 1}),
    "Nomic": (hf.NomicBertConfig, hf.NomicBertModel, {}),
    "RoFormer": (hf.RoFormerConfig, hf.RoFormerModel, {"embedding_size": 32}),
}  # fmt: skip
"""Architectures of many published text encoders: configuration, model, and their own settings."""


def write_other(name: str) -> Callable[[Path], None]:
    config, model, own = OTHERS[name]

    def write(folder: Path) -> None:
        sizes = {"vocab_size": 300, "max_position_embeddings": 130, **SIZE, **own}
        save(model(config(**sizes)), folder)
        generic_models.wordpiece(folder)
        as_it_is(folder)

    return write


def spaced(residues: str) -> str:
    return " ".join(re.sub("[UZOB]", "X", residues))


def inner(states: torch.Tensor) -> torch.Tensor:
    return states[1:-1].mean(0)


def all_tokens(states: torch.Tensor) -> torch.Tensor:
    return states.mean(0)


MODELS = {
    "ESM-1b": Published(esm1b, PROTEINS, str, inner),
    "ESM-1v": Published(esm1v, PROTEINS, str, inner),
    "ESM-C": Published(esmc, PROTEINS, str, inner),
    "ProtBert": Published(protbert, PROTEINS, spaced, inner),
    "ProtT5": Published(
        prott5, PROTEINS, spaced, lambda h: h[:-1].mean(0), model=hf.T5EncoderModel
    ),
    "ProtT5, with its decoder": Published(
        prott5_whole, PROTEINS, spaced, lambda h: h[:-1].mean(0), model=hf.T5EncoderModel
    ),
    "ProstT5": Published(
        prostt5, PROTEINS, lambda s: f"<AA2fold> {spaced(s)}", inner, model=hf.T5EncoderModel
    ),
    "Ankh": Published(ankh, PROTEINS, str, lambda h: h[:-1].mean(0), model=hf.T5EncoderModel),
    "GENA-LM": Published(gena_lm, DNA, str, inner),
    "Nucleotide Transformer v1": Published(nucleotide_transformer, DNA, str, all_tokens),
    "Nucleotide Transformer v2": Published(
        nucleotide_transformer_2, DNA, str, all_tokens, run=run_nucleotide_transformer_2
    ),
    "ModernBERT": Published(modernbert, TEXTS, str, all_tokens),
    "XLM-RoBERTa": Published(xlm_roberta, TEXTS, str, all_tokens),
    "EuroBERT": Published(eurobert, TEXTS, str, all_tokens),
    "Gemma 3, bidirectional": Published(embedding_gemma, TEXTS, str, all_tokens),
    **{name: Published(write_other(name), TEXTS, str, all_tokens) for name in OTHERS},
    "Qwen3": Published(qwen3, TEXTS, str, lambda h: h[-1]),
}


def write(folder: Path, name: str) -> Path:
    """Write a model's files."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(sum(name.encode()))
    MODELS[name].write(folder)
    return folder


def ids(folder: Path, name: str, text: str) -> list[int]:
    """Return the ids that the model's own tokenizer gives an input."""
    published = MODELS[name]
    tokenizer = published.tokenizer.from_pretrained(str(folder))
    found: list[int] = tokenizer(published.text(text))["input_ids"]
    return found


def vector(folder: Path, name: str, text: str) -> Any:
    """Return what the model's users compute of one input, as numpy."""
    published = MODELS[name]
    if published.run is not None:
        states = published.run(folder, torch.tensor(ids(folder, name, text)))
        return published.usage(states).numpy()
    model = published.model.from_pretrained(str(folder)).eval()
    with torch.no_grad():
        states = model(torch.tensor([ids(folder, name, text)])).last_hidden_state[0]
    return published.usage(states).numpy()
