"""Small random models of architectures that transformers has, saved as their publishers save them.

Each has a tokenizer of its kind, trained on a few sentences, and known difficulties: fixed padding
in tokenizer.json, training heads, a decoder besides the encoder.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    BertConfig,
    BertForMaskedLM,
    EsmConfig,
    EsmForMaskedLM,
    GPT2Config,
    GPT2Model,
    ModernBertConfig,
    ModernBertModel,
    NomicBertConfig,
    NomicBertModel,
    RobertaConfig,
    RobertaForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
)

TEXTS = [
    "The queue is a directory, and a claim is a file in it.",
    "A worker takes a claim by renaming it.",
    "Naïve façades of ½ a café, 12 times over!",
    "short",
    "",
    "A much longer text, which goes on about proteins and genomes for so long that it is clearly "
    "not of the length of its neighbours in the batch, and ends at last.",
]
SIZE: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "initializer_range": 0.2,
}
BERT_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def wordpiece(folder: Path) -> None:
    """BERT's: lower case, words and their pieces, [CLS] and [SEP]; padded to 128 as published."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=BERT_SPECIAL, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_padding(length=128, pad_id=0, pad_token="[PAD]")
    tokenizer.enable_truncation(128)
    tokenizer.save(str(folder / "tokenizer.json"))


def byte_level(folder: Path) -> None:
    """RoBERTa's: it has no unknown token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    tokenizer.save(str(folder / "tokenizer.json"))


def plain(folder: Path) -> None:
    """GPT-2's: bytes, and nothing before or after a text."""
    byte_level(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.save(str(folder / "tokenizer.json"))


def unigram(folder: Path) -> None:
    """T5's: only an end token."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))


def spaced_residues(folder: Path) -> None:
    """ProtBert's: upper-case residues with blanks between them."""
    letters = {token: n for n, token in enumerate([*BERT_SPECIAL, *"LAGVERSTIDPKQNFYMHWCXUBZO"])}
    tokenizer = Tokenizer(models.WordPiece(letters, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))


def six_mers(folder: Path) -> None:
    """The Nucleotide Transformer's: a vocabulary of six bases in a token, and no tokenizer.json."""
    mers = ["ACGTAC", "GTACGT", "TTTTTT", "GGGGGG"]
    words = ["<unk>", "<pad>", "<mask>", "<cls>", "<eos>", *mers, *"ATCGN"]
    (folder / "vocab.txt").write_text("\n".join(words))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "EsmTokenizer"}')


def bert() -> Any:
    return BertForMaskedLM(BertConfig(**SIZE, max_position_embeddings=64))


def roberta() -> Any:
    return RobertaForMaskedLM(RobertaConfig(**SIZE, max_position_embeddings=66, pad_token_id=1))


def modern() -> Any:
    special = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3}
    return ModernBertModel(
        ModernBertConfig(**SIZE, **special, bos_token_id=2, eos_token_id=3, local_attention=16)
    )


def nomic() -> Any:
    return NomicBertModel(NomicBertConfig(**SIZE))


def t5() -> Any:
    config = T5Config(vocab_size=300, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    return T5ForConditionalGeneration(config)


def gpt2() -> Any:
    return GPT2Model(
        GPT2Config(
            vocab_size=300,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=64,
            bos_token_id=0,
            eos_token_id=2,
        )
    )


def esm1() -> Any:
    return EsmForMaskedLM(
        EsmConfig(
            **SIZE,
            pad_token_id=1,
            mask_token_id=2,
            position_embedding_type="absolute",
            max_position_embeddings=66,
            token_dropout=True,
        )
    )


MODELS: dict[str, tuple[Callable[[], Any], Callable[[Path], None]]] = {
    "bert": (bert, wordpiece),
    "roberta": (roberta, byte_level),
    "modernbert": (modern, wordpiece),
    "nomic": (nomic, wordpiece),
    "t5": (t5, unigram),
    "gpt2": (gpt2, plain),
    "protbert": (bert, spaced_residues),
    "nucleotides": (esm1, six_mers),
}


def write_model(folder: Path, name: str) -> Path:
    """Write a model and its tokenizer; the same name gives the same numbers."""
    make, tokenizer = MODELS[name]
    torch.manual_seed(sum(name.encode()))
    model = make()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    tokenizer(folder)
    return folder
