"""Find and pin a LoRA adapter, as peft saves it, and check that it belongs to a model.

An adapter is pinned by a hash of its files, which becomes part of the identity of the weights, so
that nothing computed with it is ever mixed with what the model alone gives. Imports neither torch
nor peft: `merge_adapter.py` merges it when the model is loaded.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from embed.models.published import files
from embed.outputs.safetensors_header import read_shapes
from fsqueue import ClaimImpossible, NotSupportedError, UsageError

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"
PREFIX: Final = "base_model.model."
"""What peft puts before the name of every module of a model."""
DOWN, UP = ".lora_A", ".lora_B"
OTHER_HEADS: Final = ("classifier", "score.", "pooler.", "qa_outputs.")
"""Parts that come after the encoder, besides masked-LM heads."""
EMBEDDING_DOWN: Final = ".lora_embedding_A"


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter whose files are on this machine, complete and identified."""

    folder: str
    digest: str
    """`sha256:...` of its files."""
    base: str
    """The model that it says it was trained on."""
    modules: Mapping[str, int]
    """The modules that it changes, and the width of their inputs."""
    replaced: Sequence[str]
    """Modules that it holds whole, such as a classifier."""


def find(folder: str) -> Adapter:
    """Return the adapter in a folder.

    Raises UsageError if it is none or of a kind that is not merged here; NotSupportedError if peft
    is not installed.
    """
    folder = os.path.abspath(os.path.expanduser(folder))
    try:
        with open(f"{folder}/{CONFIG}", encoding="utf-8") as file:
            config = json.load(file)
        with open(f"{folder}/{WEIGHTS}", "rb") as file:
            shapes = read_shapes(file.fileno())
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UsageError(
            f"--adapter {folder}: is not a folder that peft saved, with {CONFIG} and {WEIGHTS} "
            f"({error}). Save it so: model.save_pretrained(DIR), safe_serialization=True"
        ) from error
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind != "LORA":
        raise UsageError(
            f"--adapter {folder}: is an adapter of type {kind}; those of type LORA are merged "
            f"here. Merge it yourself: merge_and_unload().save_pretrained(NEW), then --model NEW"
        )
    if importlib.util.find_spec("peft") is None:
        raise NotSupportedError(
            f"--adapter {folder}: is merged by the library peft, which is not installed. Type: "
            f"pip install 'fsqueue[peft]'"
        )
    modules, replaced = _modules(shapes)
    if not modules:
        raise UsageError(f"--adapter {folder}: changes no module. Was it saved after training?")
    base = str(config.get("base_model_name_or_path") or "")
    return Adapter(folder, f"sha256:{_hash(folder)}", base, modules, replaced)


def _modules(shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, int], list[str]]:
    changed, replaced = {}, set()
    for name, shape in shapes.items():
        inner = name.removeprefix(PREFIX)
        if is_outside(inner):
            replaced.add(inner.partition(".lora_")[0])
            continue
        for part in (DOWN, EMBEDDING_DOWN):
            if part in inner:
                changed[inner.partition(part)[0]] = shape[1]
        if ".lora_" not in inner:
            replaced.add(inner.rpartition(".")[0])
    return changed, sorted(replaced)


def is_outside(module: str) -> bool:
    """Return whether a module is after the encoder, whose states are pooled."""
    return module.startswith((*files.HEADS, *OTHER_HEADS)) or "decoder" in module.split(".")


def _hash(folder: str) -> str:
    total = hashlib.sha256()
    for name in (CONFIG, WEIGHTS):
        with open(f"{folder}/{name}", "rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def check_base(adapter: Adapter, folder: str, name: str, family: str) -> Iterator[str]:
    """Yield what a user should know about an adapter of the model in `folder`, called `name`.

    Raises UsageError if it was trained on another model.
    """
    if family == "dnabert":
        raise UsageError(
            "--adapter: DNABERT is computed by code of fsqueue's own, and the names of its layers "
            "are not those that an adapter has. Merge it yourself, then give the merged model."
        )
    named = adapter.base.rstrip("/").rpartition("/")[2]
    says = f" (it says its base is {adapter.base})" if adapter.base else ""
    weights = list(_base_shapes(folder))
    whole = dict(weights)
    inner = {name.partition(".")[2]: shape for name, shape in weights} | whole
    for module, width in adapter.modules.items() if weights else ():
        # Either may have been saved inside another model, with that one's name before.
        found = inner.get(f"{module}.weight") or whole.get(f"{module.partition('.')[2]}.weight")
        if found is None or width not in found:
            why = f"has no {module}" if found is None else f"has a {module} of another size"
            raise UsageError(
                f"--adapter {adapter.folder}: was trained on another model than {name}, which "
                f"{why}{says}. Give the model that it was trained on: --model "
                f"{adapter.base or 'MODEL'}"
            )
    if named and named != name.rpartition("/")[2]:
        yield f"the adapter says its base is {adapter.base}; its layers fit {name}, too"
    if adapter.replaced:
        yield f"what the adapter holds besides layers is not used: {', '.join(adapter.replaced)}"


def _base_shapes(folder: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the names and shapes of a model's weights; nothing of pickled ones."""
    for path in files.weight_files(folder):
        if not path.endswith(".bin"):
            with open(path, "rb") as file:
                yield from read_shapes(file.fileno()).items()


def locate(options: Mapping[str, Any]) -> str:
    """Return the folder of the adapter that a plan pinned, on the machine where a claim runs; ""
    if it has none. Raises as `hub.locate` does."""
    if not options.get("adapter"):
        return ""
    try:
        adapter = find(options["adapter"])
    except UsageError as error:
        raise NotSupportedError(f"this machine lacks the planned adapter. {error}") from error
    if adapter.digest != options["adapter_hash"]:
        raise ClaimImpossible(
            f"{adapter.folder}: the adapter changed since it was planned ({adapter.digest}, not "
            f"{options['adapter_hash']}). Put the planned one back, or plan the inputs again."
        )
    return adapter.folder
