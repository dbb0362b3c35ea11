"""A budget that was found is remembered for the same card and model, and never trusted blindly."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from embed.engine import model_cache
from embed.engine.budget import TOKENS_MAX, FoundBudget
from embed.engine.device import Cpu
from embed.engine.model_cache import ModelCache
from embed.engine.remembered_budget import BudgetKey, cache_directory, recall, remember
from embed.handlers.embed import Embed
from embed.options import OPTIONS
from tests.support.simulated_device import SimulatedDevice

KEY = BudgetKey("NVIDIA L4", 1, "abc123", "bfloat16", 4096, "2.10.0")


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache directory, which does not exist yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def file() -> Path:
    path = KEY.path()
    assert path is not None
    return Path(path)


def test_what_was_found_is_recalled_for_the_same_card_model_and_versions_only(cache: Path) -> None:
    assert recall(KEY, TOKENS_MAX) is None
    remember(KEY, 65_536)
    assert recall(KEY, TOKENS_MAX) == 65_536
    assert file().is_relative_to(cache / "fsqueue" / "budgets")
    others: list[dict[str, Any]] = [
        {"card": "Tesla T4"}, {"workers": 2}, {"weights": "def"}, {"dtype": "float16"},
        {"tokens_per_batch": 8192}, {"torch": "2.11.0"},
    ]  # fmt: skip
    assert all(recall(replace(KEY, **other), TOKENS_MAX) is None for other in others)
    remember(KEY, 8192)
    assert recall(KEY, TOKENS_MAX) == 8192
    assert [each.name for each in file().parent.iterdir()] == [file().name]


def held(**changed: Any) -> bytes:
    remember(KEY, 8192)
    return json.dumps({**json.loads(file().read_bytes()), **changed}).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\xff\xfe", b"[]", b"null", b"{", b"[" * 4000, b" " * 5000, b'{"format": 1}',
        *({"tokens": n} for n in (0, -4096, 4095, 3 * 4096, 2 * TOKENS_MAX, 8192.0, "8192", True)),
        {"tokens": None}, {"format": 2}, {"key": {}}, {"key": None}, {"tokens": 10**400},
    ],
)  # fmt: skip
def test_a_file_that_does_not_hold_what_it_should_is_ignored(
    content: bytes | dict[str, Any],
) -> None:
    data = held(**content) if isinstance(content, dict) else held() and content
    file().write_bytes(data)
    assert recall(KEY, TOKENS_MAX) is None
    remember(KEY, 16_384)
    assert recall(KEY, TOKENS_MAX) == 16_384, "and replaced"


def test_what_is_not_a_file_or_a_strangers_is_ignored(tmp_path: Path) -> None:
    remember(KEY, 8192)
    file().chmod(0o666)
    assert recall(KEY, TOKENS_MAX) is None, "everybody may have written it"
    file().rename(tmp_path / "real")
    (tmp_path / "real").chmod(0o600)
    file().symlink_to(tmp_path / "real")
    assert recall(KEY, TOKENS_MAX) is None
    file().unlink()
    os.mkfifo(file())
    assert recall(KEY, TOKENS_MAX) is None
    file().unlink()
    file().mkdir()
    assert recall(KEY, TOKENS_MAX) is None
    remember(KEY, 8192)  # cannot be replaced, which is no error


def test_a_cache_directory_that_cannot_be_made_is_no_error(cache: Path) -> None:
    cache.write_text("a file")
    remember(KEY, 8192)
    assert recall(KEY, TOKENS_MAX) is None


def test_the_cache_is_where_xdg_says_else_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert cache_directory({"XDG_CACHE_HOME": "/scratch/ada"}) == "/scratch/ada"
    assert cache_directory({"XDG_CACHE_HOME": "relative"}) == "/home/ada/.cache"
    assert cache_directory({}) == "/home/ada/.cache"
    monkeypatch.setenv("HOME", "nowhere")
    assert cache_directory({}) is None


# ---- in the cache of models ----


@pytest.fixture
def options(tiny_model: Path) -> dict[str, Any]:
    defaults = {option.name: option.default for option in OPTIONS}
    return Embed().prepare({**defaults, "model": str(tiny_model)})


def budget(options: dict[str, Any], device: Any) -> FoundBudget | None:
    loaded = ModelCache(device, pytest.fail).get(options, "a", None)
    loaded.engine(options)
    found = loaded.budget
    assert found is None or isinstance(found, FoundBudget)
    return found


def settle(found: FoundBudget) -> None:
    """Decide as often as launches of growing size would, each twice as fast as the one before."""
    seconds = 1.0
    while not found.settled:
        seconds /= 2
        found._timed_tokens, found._seconds = found.tokens, found.tokens * seconds
        found._decide()


def test_the_next_process_begins_with_what_one_found(options: dict[str, Any]) -> None:
    first = budget(options, SimulatedDevice())
    assert first is not None and not first.settled
    settle(first)
    again = budget(options, SimulatedDevice())
    assert again is not None and again.settled
    assert again.tokens == first.tokens > options["tokens_per_batch"]
    other = budget(options, SimulatedDevice(name="NVIDIA Other"))
    assert other is not None and (other.settled, other.tokens) == (
        False,
        options["tokens_per_batch"],
    )


def test_what_ran_out_of_memory_is_not_remembered(options: dict[str, Any], cache: Path) -> None:
    found = budget(options, SimulatedDevice())
    assert found is not None
    found.limit(1000)
    assert found.settled and not cache.exists()


def test_a_deterministic_plan_and_a_cpu_neither_read_nor_write_it(
    options: dict[str, Any], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_cache, "recall", pytest.fail)
    assert budget({**options, "deterministic": True}, SimulatedDevice()) is None
    assert budget(options, Cpu()) is None
    assert not cache.exists()
