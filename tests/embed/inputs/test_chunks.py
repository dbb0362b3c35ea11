"""Chunks hold all of a text, fit what the model takes, and begin and end where words do."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embed.inputs.chunks import MARK, Span, spans
from embed.models.generic.tokens import GenericTokens
from tests.support.generic_models import TEXTS, byte_level, unigram, wordpiece

PROSE = "\n\n".join(" ".join(TEXTS) for _ in range(20))
KINDS = [wordpiece, byte_level, unigram]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, GenericTokens]:
    found = {}
    for write in KINDS:
        folder = tmp_path_factory.mktemp(write.__name__)
        write(folder)
        found[write.__name__] = GenericTokens(str(folder))
    return found


def check(text: str, tokens: GenericTokens, size: int, overlap: int) -> list[Span]:
    """Cut a text, and hold the chunks to what is promised of all."""
    found = list(spans(text, tokens.places, size, overlap))
    reached = 0
    for one in found:
        assert 0 < one.tokens <= size
        assert one.tokens == len(tokens.places(text[one.begin : one.end]))
        assert one.end > reached
        gap = text[reached : one.begin]
        assert not gap.strip().strip(MARK) or not tokens.places(gap), gap
        reached = one.end
    assert not text[reached:].strip().strip(MARK) or not tokens.places(text[reached:])
    return found


@pytest.mark.parametrize("kind", [write.__name__ for write in KINDS])
@pytest.mark.parametrize(("size", "overlap"), [(16, 0), (16, 8), (62, 10), (200, 32), (9999, 32)])
def test_every_word_is_in_a_chunk_and_every_chunk_fits(
    tokenizers: dict[str, GenericTokens], kind: str, size: int, overlap: int
) -> None:
    found = check(PROSE, tokenizers[kind], size, overlap)
    for one in found:
        assert one.begin == 0 or PROSE[one.begin - 1].isspace()
        assert one.end == len(PROSE) or PROSE[one.end].isspace()
        assert not PROSE[one.begin].isspace() and not PROSE[one.end - 1].isspace()
    assert size > 1000 or len(found) > 5
    assert len(found) == 1 or min(one.tokens for one in found[:-1]) > size // 3


def test_a_chunk_repeats_about_as_many_tokens_as_were_asked(
    tokenizers: dict[str, GenericTokens],
) -> None:
    tokens = tokenizers["wordpiece"]
    found = check(PROSE, tokens, 62, 20)
    for one, two in zip(found, found[1:], strict=False):
        assert 10 <= len(tokens.places(PROSE[two.begin : one.end])) <= 20
    plain = check(PROSE, tokens, 62, 0)
    assert all(two.begin > one.end for one, two in zip(plain, plain[1:], strict=False))


def test_what_has_no_white_space_is_cut_between_tokens(
    tokenizers: dict[str, GenericTokens],
) -> None:
    text = "of each the " + "theclaimsofaqueue" * 200 + " and so on"
    found = check(text, tokenizers["byte_level"], 32, 8)
    assert len(found) > 20
    assert found[-1].end == len(text)


def test_what_was_said_already_makes_no_chunk_of_its_own(
    tokenizers: dict[str, GenericTokens],
) -> None:
    """Before a word that fills a chunk, the repeated words stand alone with nothing new."""
    tokens = tokenizers["byte_level"]
    text = "a worker takes a claim " * 4 + "x" * 400
    check(text, tokens, 32, 16)


@pytest.mark.parametrize("text", ["", " \n\t ", MARK, f"{MARK}\n"])
def test_a_text_without_text_has_no_chunks(tokenizers: dict[str, GenericTokens], text: str) -> None:
    assert list(spans(text, tokenizers["wordpiece"].places, 16, 4)) == []


def test_a_short_text_is_one_chunk_without_the_blanks_around_it(
    tokenizers: dict[str, GenericTokens],
) -> None:
    (one,) = spans(f"{MARK}  a claim \n", tokenizers["wordpiece"].places, 16, 4)
    assert (one.begin, one.end) == (3, 10)


LETTERS = st.sampled_from("abc, .\n\t ééä漢字🙂\u200b\u0007\ufeffﬁ½")


@settings(max_examples=150, deadline=None)
@given(
    text=st.text(LETTERS, max_size=400) | st.text(max_size=200),
    kind=st.sampled_from([write.__name__ for write in KINDS]),
    size=st.integers(16, 40),
    part=st.integers(0, 100),
)
def test_any_text_at_all_is_cut_whole(
    tokenizers: dict[str, GenericTokens], text: str, kind: str, size: int, part: int
) -> None:
    check(text, tokenizers[kind], size, size * part // 200)


def test_all_is_read_about_twice_and_no_more(tokenizers: dict[str, GenericTokens]) -> None:
    """Looking for where chunks end costs by the text's length, not by its square."""
    tokens = tokenizers["wordpiece"]
    read = 0

    def counted(text: str) -> list[tuple[int, int]]:
        nonlocal read
        read += len(text)
        return tokens.places(text)

    text = PROSE * 10
    list(spans(text, counted, 62, 8))
    assert read < 4 * len(text)
