"""Find a model's files, on this machine or on the hub, and pin them to their exact bytes.

A model is a local folder, as `save_pretrained` writes it, or a hub id with an optional `@revision`.
A folder is pinned by a hash over its configuration and weights, a hub id by its commit. What is
cached is used without asking the network; the network is asked once, with a short deadline.

The only door to huggingface_hub. What this module does not import: torch and transformers, so that
planning starts fast.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from embed.models import files
from embed.models.generic import shape
from fsqueue import ClaimImpossible, NotSupportedError, UsageError

FILES: Final = [
    "config.json",
    *shape.TOKENIZERS,
    *shape.BESIDE,
    "model*.safetensors",
    "model.safetensors.index.json",
]
HUB_ID: Final = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", re.ASCII)
DEADLINE_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Model:
    """A model whose files are here, whole and identified."""

    name: str
    """The hub id, or the folder's own name: what is written into results, the same everywhere."""
    folder: str
    revision: str
    """The hub's commit; empty for a folder."""
    weights: str
    """`sha256:...` of a folder's files, or `commit:...`."""
    family: str
    width: int
    """Numbers per embedding."""
    longest: int = 0
    """Its longest input in tokens; 0 where the family knows."""


def find(spec: str) -> Model:
    """Return the model that a user asked for, fetching it from the hub if it is not here.

    Raises UsageError, saying what to type.
    """
    folder = os.path.expanduser(spec)
    if os.path.isdir(folder):
        return local(os.path.abspath(folder))
    if HUB_ID.fullmatch(spec) is None:
        raise UsageError(
            f"--model {spec}: there is no such folder, and it is not a hub id either. Give a "
            f"folder with config.json and model.safetensors, or an id: facebook/esm2_t6_8M_UR50D."
        )
    name, _, revision = spec.partition("@")
    return hub(name, revision or "main")


def locate(options: Mapping[str, Any]) -> str:
    """Return the folder of the model that a plan pinned, on the machine where a claim runs.

    Raises NotSupportedError if it is not here, for other machines may have it; ClaimImpossible if
    it is another model by now.
    """
    try:
        if options["revision"]:
            return hub(options["model"], options["revision"]).folder
        model = local(options["folder"])
    except UsageError as error:
        raise NotSupportedError(f"this machine lacks the planned model. {error}") from error
    if model.weights != options["weights"]:
        raise ClaimImpossible(
            f"{model.folder}: the model changed since it was planned ({model.weights}, not "
            f"{options['weights']}). Put the planned one back, or plan the inputs again."
        )
    return model.folder


def local(folder: str) -> Model:
    """Return the model in a folder, hashing its files."""
    facts = files.inspect(folder)
    weights = f"sha256:{files.hash_files(folder)}"
    name = os.path.basename(folder)
    return Model(name, folder, "", weights, facts.family, facts.width, facts.longest)


def hub(name: str, revision: str) -> Model:
    """Return the model `name` of the hub at `revision`, from the cache if it is there."""
    folder = _cached(name, revision) or _fetch(name, revision)
    commit = os.path.basename(folder)
    facts = files.inspect(folder)
    weights = f"commit:{commit}"
    return Model(name, folder, commit, weights, facts.family, facts.width, facts.longest)


def _cached(name: str, revision: str) -> str | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = snapshot_download(name, revision=revision, local_files_only=True)
        files.inspect(folder)
    except (LocalEntryNotFoundError, UsageError):
        return None  # not there, or half of it: a download that was cut short
    return folder


def _fetch(name: str, revision: str) -> str:
    from huggingface_hub import HfApi, constants, snapshot_download

    command = f"hf download {name} --revision {revision}"
    if constants.HF_HUB_OFFLINE:
        raise UsageError(
            f"--model {name}: not whole in the cache ({constants.HF_HUB_CACHE}), and "
            f"HF_HUB_OFFLINE forbids to fetch it. Where there is a network, type: {command}"
        )
    try:
        info = HfApi().model_info(name, revision=revision, timeout=DEADLINE_S)
        held = [file.rfilename for file in info.siblings or []]
        only_pickled = not any(file.endswith(".safetensors") for file in held)
        wanted = [*FILES, "pytorch_model*"] if only_pickled else FILES
        return snapshot_download(name, revision=info.sha, allow_patterns=wanted)
    except Exception as error:  # what a failing network raises depends on the client's version
        raise UsageError(
            f"--model {name}: not in the cache ({constants.HF_HUB_CACHE}), and the hub did not "
            f"give it at revision {revision} ({_first_line(error)}). Check the name and the "
            f"network, then type: {command}; or give a folder that holds the model."
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
