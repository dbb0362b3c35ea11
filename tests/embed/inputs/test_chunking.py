"""Chunks hold all of a text, fit what the model takes, and begin and end where words do."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embed.inputs.chunking import BYTE_ORDER_MARK, Span, chunk_spans
from embed.models.generic.tokenizer import GenericTokenizer
from tests.support.generic_models import TEXTS, byte_level, unigram, wordpiece

PROSE = "\n\n".join(" ".join(TEXTS) for _ in range(20))
KINDS = [wordpiece, byte_level, unigram]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, GenericTokenizer]:
    found = {}
    for write in KINDS:
        folder = tmp_path_factory.mktemp(write.__name__)
        write(folder)
        found[write.__name__] = GenericTokenizer(str(folder))
    return found


def is_blank(text: str) -> bool:
    """Return whether there is nothing but white space and byte-order marks, anywhere."""
    return not text.replace(BYTE_ORDER_MARK, " ").strip()


def check(text: str, tokenizer: GenericTokenizer, size: int, overlap: int) -> list[Span]:
    """Cut a text, and hold the chunks to what is promised of all."""
    found = list(chunk_spans(text, tokenizer.offsets, size, overlap))
    reached = 0
    for one in found:
        assert 0 < one.tokens <= size
        assert one.tokens == len(tokenizer.offsets(text[one.begin : one.end]))
        assert one.end > reached
        gap = text[reached : one.begin]
        assert is_blank(gap) or not tokenizer.offsets(gap), gap
        reached = one.end
    rest = text[reached:]
    assert is_blank(rest) or not tokenizer.offsets(rest)
    return found


@pytest.mark.parametrize("kind", [write.__name__ for write in KINDS])
@pytest.mark.parametrize(("size", "overlap"), [(16, 0), (16, 8), (62, 10), (200, 32), (9999, 32)])
def test_every_word_is_in_a_chunk_and_every_chunk_fits(
    tokenizers: dict[str, GenericTokenizer], kind: str, size: int, overlap: int
) -> None:
    found = check(PROSE, tokenizers[kind], size, overlap)
    for one in found:
        assert one.begin == 0 or PROSE[one.begin - 1].isspace()
        assert one.end == len(PROSE) or PROSE[one.end].isspace()
        assert not PROSE[one.begin].isspace() and not PROSE[one.end - 1].isspace()
    assert size > 1000 or len(found) > 5
    assert len(found) == 1 or min(one.tokens for one in found[:-1]) > size // 3


def test_a_chunk_repeats_about_the_requested_number_of_tokens(
    tokenizers: dict[str, GenericTokenizer],
) -> None:
    tokenizer = tokenizers["wordpiece"]
    found = check(PROSE, tokenizer, 62, 20)
    for one, two in zip(found, found[1:], strict=False):
        assert 10 <= len(tokenizer.offsets(PROSE[two.begin : one.end])) <= 20
    plain = check(PROSE, tokenizer, 62, 0)
    assert all(two.begin > one.end for one, two in zip(plain, plain[1:], strict=False))


def test_text_without_white_space_is_cut_between_tokens(
    tokenizers: dict[str, GenericTokenizer],
) -> None:
    text = "of each the " + "theclaimsofaqueue" * 200 + " and so on"
    found = check(text, tokenizers["byte_level"], 32, 8)
    assert len(found) > 20
    assert found[-1].end == len(text)


def test_repeated_text_alone_makes_no_chunk(
    tokenizers: dict[str, GenericTokenizer],
) -> None:
    """Before a word that fills a chunk, the repeated words stand alone with nothing new."""
    tokenizer = tokenizers["byte_level"]
    text = "a worker takes a claim " * 4 + "x" * 400
    check(text, tokenizer, 32, 16)


@pytest.mark.parametrize("text", ["", " \n\t ", BYTE_ORDER_MARK, f"{BYTE_ORDER_MARK}\n"])
def test_a_text_without_text_has_no_chunks(
    tokenizers: dict[str, GenericTokenizer], text: str
) -> None:
    assert list(chunk_spans(text, tokenizers["wordpiece"].offsets, 16, 4)) == []


def test_a_short_text_is_one_chunk_without_the_blanks_around_it(
    tokenizers: dict[str, GenericTokenizer],
) -> None:
    text = f"{BYTE_ORDER_MARK}  a claim \n"
    (one,) = chunk_spans(text, tokenizers["wordpiece"].offsets, 16, 4)
    assert (one.begin, one.end) == (3, 10)


LETTERS = st.sampled_from("abc, .\n\t ééä漢字🙂\u200b\u0007\ufeffﬁ½")


@settings(max_examples=150, deadline=None)
@given(
    text=st.text(LETTERS, max_size=400) | st.text(max_size=200),
    kind=st.sampled_from([write.__name__ for write in KINDS]),
    size=st.integers(16, 40),
    part=st.integers(0, 100),
)
def test_any_text_is_chunked_completely(
    tokenizers: dict[str, GenericTokenizer], text: str, kind: str, size: int, part: int
) -> None:
    check(text, tokenizers[kind], size, size * part // 200)


def test_text_is_tokenized_about_twice(tokenizers: dict[str, GenericTokenizer]) -> None:
    """The time to find where chunks end is linear in the text's length."""
    tokenizer = tokenizers["wordpiece"]
    read = 0

    def counted(text: str) -> list[tuple[int, int]]:
        nonlocal read
        read += len(text)
        return tokenizer.offsets(text)

    text = PROSE * 10
    list(chunk_spans(text, counted, 62, 8))
    assert read < 4 * len(text)
