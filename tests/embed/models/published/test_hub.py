"""Models are found in folders or in the cache; errors say what to type."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from embed.models.esm2.tokenizer import VOCABULARY
from embed.models.published import hub
from fsqueue import UsageError
from tests.support.generic_models import write_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def copy(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to be damaged."""
    return Path(shutil.copytree(tiny_model, tmp_path / "copy"))


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_folder_is_pinned_by_the_bytes_of_its_files(tiny_model: Path, copy: Path) -> None:
    one, two = hub.find(str(tiny_model)), hub.find(str(copy))
    assert one.weights == two.weights
    assert (one.name, one.revision, one.width) == ("tiny_esm2", "", 32)
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert hub.find(str(copy)).weights != one.weights


def test_a_relative_folder_becomes_absolute(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy.parent)
    assert hub.find("copy/").folder == str(copy)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "bert"}, "has no tokenizer"),
        ({"model_type": "no_such"}, "type 'no_such', which transformers does not have"),
        ({"model_type": "no_such", "auto_map": {"AutoModel": "x.Y"}}, "its own code"),
        ({"is_folding_model": True}, "ESMFold"),
        ({"position_embedding_type": "absolute"}, "has no tokenizer"),
        ({"vocab_size": 34}, "has no tokenizer"),
    ],
)
def test_another_kind_of_model_is_refused(copy: Path, changes: dict[str, Any], reason: str) -> None:
    change_config(copy, **changes)
    with pytest.raises(UsageError, match=reason):
        hub.find(str(copy))


def test_another_vocabulary_is_not_read_by_table(copy: Path) -> None:
    (copy / "vocab.txt").write_text("\n".join(VOCABULARY))
    assert hub.find(str(copy)).family == "esm2"
    (copy / "vocab.txt").write_text("\n".join(sorted(VOCABULARY)))
    assert hub.find(str(copy)).family == "auto"


def test_a_truncated_weights_file_is_refused(copy: Path) -> None:
    weights = copy / "model.safetensors"
    for length in (weights.stat().st_size - 1, 100, 4, 0):
        os.truncate(weights, length)
        with pytest.raises(UsageError, match="truncated"):
            hub.find(str(copy))


def test_pickled_weights_are_refused_with_how_to_convert_them(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(UsageError, match="convert that: python -c"):
        hub.find(str(copy))


def test_shards_are_all_needed(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    hub.find(str(copy))
    index["weight_map"]["b"] = "model-00002-of-00002.safetensors"
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UsageError, match="00002-of-00002.safetensors: is missing"):
        hub.find(str(copy))


@pytest.mark.parametrize("spec", ["no/such/folder", "/no/such/folder", "esm2", ""])
def test_a_name_that_is_neither_a_folder_nor_an_id_is_refused(spec: str) -> None:
    with pytest.raises(UsageError, match="neither a folder nor a hub id"):
        hub.find(spec)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="config.json"):
        hub.find(str(tmp_path))


# ---- the hub ----


CODE = (
    "import sys; from embed.models.published import hub; from fsqueue import UsageError\n"
    "try: print(hub.find(sys.argv[1]))\n"
    "except UsageError as error: print('refused:', error)"
)


def find_elsewhere(
    spec: str, cache: Path, before: str = "", **environment: str
) -> tuple[str, float]:
    """Find a model in a new process, because the hub's client reads its environment once."""
    settings = {"HF_HUB_CACHE": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "*"}
    clean = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", before + CODE, spec],
        capture_output=True,
        text=True,
        env={**clean, "HF_HUB_OFFLINE": "0", **settings, **environment},
        timeout=60,
    )
    return done.stdout or done.stderr, time.monotonic() - began


@pytest.fixture
def cache(tiny_model: Path, tmp_path: Path) -> Path:
    """A hub cache that holds org/tiny at one commit."""
    repository = tmp_path / "hub" / "models--org--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    shutil.copytree(tiny_model, repository / "snapshots" / COMMIT)
    return tmp_path / "hub"


@pytest.mark.slow
def test_a_cached_model_needs_no_network_and_is_pinned_by_its_commit(cache: Path) -> None:
    unreachable = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    for spec in ("org/tiny", f"org/tiny@{COMMIT}", "org/tiny@main"):
        output, _ = find_elsewhere(spec, cache, **unreachable)
        assert f"revision='{COMMIT}'" in output and f"weights='commit:{COMMIT}'" in output, output


@pytest.fixture
def hub_server() -> Iterator[tuple[str, dict[str, bytes], list[str]]]:
    """A hub that has these files of every model; yield its address, files, and requests."""
    files: dict[str, bytes] = {}
    requests: list[str] = []

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(f"{self.command} {self.path}")
            if self.path.startswith("/api/models/"):
                listed = {"id": "org/bert", "siblings": [{"rfilename": name} for name in files]}
                self.answer(json.dumps(listed).encode())
                return
            data = files.get(self.path.partition(f"/resolve/{COMMIT}/")[2])
            self.answer(data)

        def answer(self, data: bytes | None) -> None:
            self.send_response(404 if data is None else 200)
            self.send_header("X-Repo-Commit", COMMIT)
            if data is None:
                self.send_header("X-Error-Code", "EntryNotFound")
            else:
                self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
            self.send_header("Content-Length", str(len(data or b"")))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data or b"")

        do_HEAD = do_GET

        def log_message(self, *_words: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", files, requests
        server.shutdown()
        thread.join()


def cached_bert(tmp_path: Path) -> Path:
    """A hub cache that holds a text model, as a program that ignores modules.json leaves it."""
    repository = tmp_path / "hub" / "models--org--bert"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    write_model(repository / "snapshots" / COMMIT, "bert")
    return tmp_path / "hub"


@pytest.mark.slow
def test_what_modules_json_names_is_fetched_with_a_model_that_was_cached_without(
    tmp_path: Path, hub_server: tuple[str, dict[str, bytes], list[str]]
) -> None:
    endpoint, files, requests = hub_server
    cache = cached_bert(tmp_path)
    types = ["Transformer", "Pooling", "Dense"]
    modules = [
        {"type": f"sentence_transformers.models.{kind}", "path": f"{n}_{kind}" if n else ""}
        for n, kind in enumerate(types)
    ]
    files["modules.json"] = json.dumps(modules).encode()
    files["1_Pooling/config.json"] = b"{}"
    files |= {"2_Dense/config.json": b"{}", "2_Dense/pytorch_model.bin": b"weights"}
    for _ in range(2):
        output, _ = find_elsewhere("org/bert", cache, HF_ENDPOINT=endpoint)
        assert "PinnedModel" in output, output
    folder = cache / "models--org--bert" / "snapshots" / COMMIT
    assert {name for name in files if (folder / name).is_file()} == files.keys()
    before = len(requests)
    find_elsewhere("org/bert", cache, HF_ENDPOINT=endpoint)
    assert len(requests) == before  # what there is not is remembered, too


@pytest.mark.slow
def test_that_a_model_may_have_a_modules_json_is_said_when_the_hub_cannot_be_asked(
    tmp_path: Path,
) -> None:
    cache = cached_bert(tmp_path)
    code = "import logging; logging.basicConfig(level='WARNING', stream=__import__('sys').stdout);"
    for setting in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        output, _ = find_elsewhere("org/bert", cache, code, **setting)
        assert "does not know whether it has a modules.json" in output, output
        assert "PinnedModel" in output


@pytest.mark.slow
def test_a_partial_download_is_not_used(cache: Path) -> None:
    weights = cache / "models--org--tiny" / "snapshots" / COMMIT / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    output, _ = find_elsewhere("org/tiny", cache, HF_HUB_OFFLINE="1")
    assert "is not complete in the cache" in output and "hf download org/tiny" in output


@pytest.mark.slow
def test_a_hub_that_does_not_answer_costs_seconds(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        output, seconds = find_elsewhere("org/none", tmp_path, HF_ENDPOINT=endpoint)
    assert output.startswith("refused: --model org/none: is not in the cache")
    assert "hf download org/none --revision main" in output
    assert seconds < 20


@pytest.mark.slow
def test_offline_fails_at_once_with_what_to_type(tmp_path: Path) -> None:
    output, _ = find_elsewhere("org/none@v2", tmp_path, HF_HUB_OFFLINE="1")
    assert (
        "HF_HUB_OFFLINE forbids fetching" in output
        and "hf download org/none --revision v2" in output
    )


@pytest.mark.parametrize(
    "name, advice",
    [
        ("esm2_t6_8M_UR50D.pt", "--model facebook/esm2_t6_8M_UR50D$"),
        ("esm2_t6_8M_UR50D-contact-regression.pt", "--model facebook/esm2_t6_8M_UR50D$"),
        ("model.safetensors", "Give the folder"),
    ],
)
def test_a_model_that_is_a_file_is_called_one(tmp_path: Path, name: str, advice: str) -> None:
    (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(UsageError, match=advice):
        hub.find(str(tmp_path / name))
