"""Models stay loaded while they fit into memory; the least recently used is evicted first."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest

from embed.engine import model_cache
from embed.engine.device import Cpu
from embed.engine.model_cache import ROOM_BYTES, ModelCache
from embed.handlers.embed import Embed
from embed.models.cost import ModelShape
from embed.options import OPTIONS
from fsqueue import NotSupportedError
from tests.support.dnabert import write_model
from tests.support.generic_models import write_model as write_bert
from tests.support.simulated_device import SimulatedDevice


@pytest.fixture
def plans(tiny_model: Path, tmp_path: Path) -> list[dict[str, Any]]:
    """The options of three plans, each of another model or precision."""
    write_model(tmp_path / "dna")
    defaults = {option.name: option.default for option in OPTIONS}
    models = [
        {"model": str(tiny_model)},
        {"model": str(tmp_path / "dna")},
        {"model": str(tiny_model), "dtype": "bfloat16"},
    ]
    return [Embed().prepare(defaults | each) for each in models]


def kinds(model_cache: ModelCache) -> list[str]:
    return [each.kind for each in model_cache]


def cache_with(free: int | None = None) -> ModelCache:
    return ModelCache(SimulatedDevice(free=free), pytest.fail)


def test_models_stay_and_the_least_recently_used_is_evicted_first(
    plans: list[dict[str, Any]],
) -> None:
    models = cache_with()
    for plan, kind in zip(plans[:2], "ab", strict=True):
        models.get(plan, kind, None)
    first = models.get(plans[0], "a", 2)
    assert kinds(models) == ["b", "a"]
    models.get(plans[2], "c", 2)
    assert kinds(models) == ["a", "c"]
    assert models.get(plans[0], "a", 2) is first, "it was not loaded again"


def test_at_most_one_model_means_one(plans: list[dict[str, Any]]) -> None:
    models = cache_with()
    for plan, kind in zip(plans, "abc", strict=True):
        models.get(plan, kind, 1)
        assert kinds(models) == [kind]


def test_models_are_evicted_until_a_new_one_fits(plans: list[dict[str, Any]]) -> None:
    models = cache_with(ROOM_BYTES)
    models.get(plans[0], "a", None)
    models.get(plans[1], "b", None)
    assert kinds(models) == ["b"], "there is never room for two"


def test_what_is_loaded_is_no_work_for_the_garbage_collector(plans: list[dict[str, Any]]) -> None:
    models = cache_with()
    encoder = models.get(plans[0], "a", None).encoder
    assert not any(each is encoder for each in gc.get_objects())
    models.close()
    assert gc.get_freeze_count() == 0
    assert any(each is encoder for each in gc.get_objects())


def test_an_evicted_model_goes_even_if_it_refers_to_itself(plans: list[dict[str, Any]]) -> None:
    models = cache_with()
    encoder: Any = models.get(plans[0], "a", 1).encoder
    encoder.itself = encoder
    is_alive = weakref.ref(encoder)
    del encoder
    assert is_alive()
    models.get(plans[1], "b", 1)
    assert not is_alive()


def test_a_load_that_runs_out_of_memory_is_tried_again_without_the_others(
    plans: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, refusals = model_cache.families.load, 1

    def load(*args: Any) -> Any:
        nonlocal refusals
        if models._models and refusals:
            refusals -= 1
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        return real(*args)

    models = cache_with()
    models.get(plans[0], "a", None)
    monkeypatch.setattr(model_cache.families, "load", load)
    models.get(plans[1], "b", None)
    assert kinds(models) == ["b"] and refusals == 0


def test_a_model_that_does_not_fit_alone_is_left_to_a_machine_with_more_memory(
    plans: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*args: Any) -> Any:
        raise RuntimeError("CUDA out of memory. Tried to allocate 90 GiB")

    monkeypatch.setattr(model_cache.families, "load", load)
    with pytest.raises(NotSupportedError, match="does not fit into this device's memory"):
        cache_with().get(plans[0], "a", None)


def test_two_ways_of_pooling_share_one_loaded_model(plans: list[dict[str, Any]]) -> None:
    models = cache_with()
    one = models.get(plans[0], "a", None)
    assert one.engine(plans[0]) is one.engine(plans[0])
    assert one.engine({**plans[0], "pooling": "max"}) is not one.engine(plans[0])
    assert len(kinds(models)) == 1


@pytest.mark.parametrize("streamed", [False, True])
def test_an_evicted_model_gives_its_memory_back_at_once(
    plans: list[dict[str, Any]], tmp_path: Path, streamed: bool
) -> None:
    """Before the next one is loaded, and with it what computed again what overflowed.

    That is loaded once for all engines.
    """
    write_bert(tmp_path / "bert", "bert")
    defaults = {option.name: option.default for option in OPTIONS}
    plans.append(Embed().prepare({**defaults, "model": str(tmp_path / "bert")}))
    models = ModelCache(SimulatedDevice(capability=(7, 5) if streamed else None), pytest.fail)
    for plan in (plans[0], plans[2], plans[3]):
        plan = {**plan, "dtype": "float16"}
        loaded = models.get(plan, "a", None)
        engine = loaded.engine(plan)
        load_again = engine._load_float32
        assert load_again is not None
        again = engine._float32_engine = load_again()
        other = loaded.engine({**plan, "deterministic": True})
        assert other is not engine and other._load_float32()._encoder is again._encoder
        kept = [weakref.ref(loaded.encoder), weakref.ref(again._encoder)]
        del loaded, engine, load_again, again, other
        models._evict()
        assert [each() for each in kept] == [None, None]


def test_free_memory_is_known_here() -> None:
    free = Cpu().free_bytes()
    assert free is None or free > 1 << 20


def test_a_handler_reports_what_it_has_loaded_and_unloads_it(plans: list[dict[str, Any]]) -> None:
    handler = Embed()
    assert handler.loaded() == []
    handler.warm(plans[0])
    handler.warm(plans[1])
    assert handler.loaded() == ["tiny_esm2", "dna"]
    handler.models_max = 1
    handler.warm(plans[2])
    assert handler.loaded() == ["tiny_esm2-bf16"]
    handler.close()
    assert handler.loaded() == []


def test_the_shape_in_a_plan_is_not_decisive(plans: list[dict[str, Any]]) -> None:
    assert plans[0]["shape"] == {
        "layers": 2, "width": 32, "inner": 64, "heads": 4, "gated": False
    }  # fmt: skip
    assert ModelShape(**plans[1]["shape"]).gated
    assert "shape" not in Embed().result_options(plans[0])
