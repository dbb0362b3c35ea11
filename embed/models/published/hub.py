"""Find a model's files, on this machine or on the hub, and pin them to their exact bytes.

A model is a local folder, as `save_pretrained` writes it, or a hub id with an optional `@revision`.
A folder is pinned by a hash of its configuration and weights, a hub id by its commit. A cached
model is used without a request to the network; otherwise there is one, with a short timeout.

The only door to huggingface_hub. Imports neither torch nor transformers, so planning starts fast.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from embed.models.conventions.modules_json import MODULES_JSON, PROMPTS_JSON, module_paths
from embed.models.generic.shape import TOKENIZER_FILES, TOKENIZER_SETTINGS
from embed.models.published import files
from fsqueue import ClaimImpossible, NotSupportedError, UsageError

log = logging.getLogger(__name__)

FILES: Final = [
    "config.json",
    MODULES_JSON,
    PROMPTS_JSON,
    *TOKENIZER_FILES,
    *TOKENIZER_SETTINGS,
    "model*.safetensors",
    "model.safetensors.index.json",
]
HUB_ID: Final = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", re.ASCII)
FAIR_ESM: Final = re.compile(r"esm(1|1b|1v|2|_msa)[\w-]*", re.ASCII)
"""How fair-esm's checkpoints are called."""
ADAPTED: Final = "+adapter:"
"""What stands between the hash of a model's weights and that of an adapter, in plans."""
TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class PinnedModel:
    """A model whose files are on this machine, complete and identified."""

    name: str
    """The hub id, or the folder's base name: what results say, the same on every machine."""
    folder: str
    revision: str
    """The hub's commit; empty for a folder."""
    weights: str
    """`sha256:...` of a folder's files, or `commit:...`."""
    family: str
    width: int
    """Numbers per embedding."""
    longest: int = 0
    """Its longest input in tokens; 0 where the family decides."""


def content(model: PinnedModel) -> str:
    """Return a hash of a model's files: the same for a hub id and a local copy."""
    if not model.revision:
        return model.weights
    return f"sha256:{files.hash_files(model.folder, cached=True)}"


def find(spec: str) -> PinnedModel:
    """Return the model that a user named, fetching it from the hub if necessary.

    Raises UsageError, with what to type.
    """
    folder = os.path.expanduser(spec)
    if os.path.isdir(folder):
        return local(os.path.abspath(folder))
    if os.path.isfile(folder):
        raise UsageError(_is_file(spec))
    if HUB_ID.fullmatch(spec) is None:
        raise UsageError(
            f"--model {spec}: is neither a folder nor a hub id. Give a folder with config.json and "
            f"model.safetensors, or an id: facebook/esm2_t6_8M_UR50D."
        )
    name, _, revision = spec.partition("@")
    found = hub(name, revision or "main")
    return found if found.family != "auto" else _with_modules(found)


def _is_file(spec: str) -> str:
    """Return what to say about a model that is a file."""
    stem = os.path.basename(spec).removesuffix(".pt")
    if FAIR_ESM.fullmatch(stem) and spec.endswith(".pt"):
        same = re.sub("-contact-regression$", "", stem)
        return (
            f"--model {spec}: is a checkpoint of fair-esm, a pickle, which is not read here. The "
            f"same weights as safetensors are on the hub: --model facebook/{same}"
        )
    return (
        f"--model {spec}: is a file, and a model is a folder with config.json and "
        f"model.safetensors, or a hub id: facebook/esm2_t6_8M_UR50D. Give the folder."
    )


def locate(options: Mapping[str, Any]) -> str:
    """Return the folder of the model that a plan pinned, on the machine where a claim runs.

    Raises NotSupportedError if it is not here, because other machines may have it; ClaimImpossible
    if it was replaced by another model.
    """
    try:
        if options["revision"]:
            return hub(options["model"], options["revision"]).folder
        model = local(options["folder"])
    except UsageError as error:
        raise NotSupportedError(f"this machine lacks the planned model. {error}") from error
    planned = options["weights"].partition(ADAPTED)[0]
    if model.weights != planned:
        raise ClaimImpossible(
            f"{model.folder}: the model changed since it was planned ({model.weights}, not "
            f"{planned}). Put the planned one back, or plan the inputs again."
        )
    return model.folder


def local(folder: str) -> PinnedModel:
    """Return the model in a folder, hashing its files."""
    facts = files.inspect(folder)
    weights = f"sha256:{files.hash_files(folder)}"
    name = os.path.basename(folder)
    return PinnedModel(name, folder, "", weights, facts.family, facts.width, facts.longest)


def hub(name: str, revision: str) -> PinnedModel:
    """Return the hub's model `name` at `revision`, from the cache if possible."""
    folder = _cached(name, revision) or _fetch(name, revision)
    commit = os.path.basename(folder)
    facts = files.inspect(folder)
    weights = f"commit:{commit}"
    return PinnedModel(name, folder, commit, weights, facts.family, facts.width, facts.longest)


def _cached(name: str, revision: str) -> str | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = snapshot_download(name, revision=revision, local_files_only=True)
        files.inspect(folder)
    except (LocalEntryNotFoundError, UsageError):
        return None  # not cached, or only in part, by an interrupted download
    return folder


def _with_modules(model: PinnedModel) -> PinnedModel:
    """Return the model, after fetching what a sentence-transformers model has besides.

    A model that another program cached may lack its modules.json, and would be pooled wrongly.
    """
    if _has(model, MODULES_JSON):
        _has(model, PROMPTS_JSON)
        for path in module_paths(model.folder):
            if _has(model, f"{path}/config.json"):
                _has(model, f"{path}/model.safetensors") or _has(model, f"{path}/pytorch_model.bin")
    return model


def _has(model: PinnedModel, name: str) -> bool:
    """Return whether a hub's model has a file, fetching it if so.

    Only the hub knows; its answer is cached, also that there is none.
    """
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError

    if os.path.isfile(f"{model.folder}/{name}"):
        return True
    if try_to_load_from_cache(model.name, name, revision=model.revision) is not None:
        return False
    reason = "HF_HUB_OFFLINE is set"
    if not constants.HF_HUB_OFFLINE:
        try:
            exists = name in _names(model.name, model.revision)  # fails at once, unlike a download
            with contextlib.nullcontext() if exists else contextlib.suppress(EntryNotFoundError):
                hf_hub_download(model.name, name, revision=model.revision, etag_timeout=TIMEOUT_S)
            return exists
        except Exception as error:  # what a failing network raises depends on the client's version
            reason = _first_line(error)
    log.warning(
        "%s: the cache does not know whether it has a %s, and the hub cannot be asked (%s); going "
        "on as if it had none",
        model.name,
        name,
        reason,
    )
    return False


@cache
def _names(name: str, commit: str) -> frozenset[str]:
    """Return the names of a model's files on the hub, after one request with a short timeout."""
    from huggingface_hub import HfApi

    info = HfApi().model_info(name, revision=commit, timeout=TIMEOUT_S)
    return frozenset(file.rfilename for file in info.siblings or [])


def _fetch(name: str, revision: str) -> str:
    from huggingface_hub import HfApi, constants, snapshot_download

    command = f"hf download {name} --revision {revision}"
    if constants.HF_HUB_OFFLINE:
        raise UsageError(
            f"--model {name}: is not complete in the cache ({constants.HF_HUB_CACHE}), and "
            f"HF_HUB_OFFLINE forbids fetching it. On a machine with a network, type: {command}"
        )
    try:
        info = HfApi().model_info(name, revision=revision, timeout=TIMEOUT_S)
        names = [file.rfilename for file in info.siblings or []]
        only_pickled = not any(name.endswith(".safetensors") for name in names)
        wanted = [*FILES, "pytorch_model*"] if only_pickled else FILES
        return snapshot_download(name, revision=info.sha, allow_patterns=wanted)
    except Exception as error:  # what a failing network raises depends on the client's version
        raise UsageError(
            f"--model {name}: is not in the cache ({constants.HF_HUB_CACHE}), and revision "
            f"{revision} could not be fetched from the hub ({_first_line(error)}). Check the name "
            f"and the network, then type: {command}; or give a folder that holds the model."
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
