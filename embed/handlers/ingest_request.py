"""Check the data of a `rag_ingestion` broadcast once, where it is sent, and resolve its documents.

    {"documents": ["/data/a.md", "notes/", "A sentence.", {"name": "b", "text": "..."}],
     "collection": "manuals", "chunk_size": 512}

A document is a path or a text. A string is a path if it is absolute, or if it exists relative to
the current directory; a directory stands for its files. Otherwise it is a text. A string that looks
like a path and does not exist is refused, so that no file's name is embedded in place of its text.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from typing import Any, Final

from embed.options import OPTIONS
from fsqueue import UsageError

FIELDS: Final = {
    "documents": list,
    "collection": str,
    "chunk_size": int,
    "chunk_overlap": int,
    "model": str,
    "store": str,
}
NOT_IN_OPTIONS: Final = {"text", *FIELDS}
"""Options of `plan embed` that are not in "options" here."""
ENDINGS: Final = (".txt", ".text", ".md", ".markdown", ".rst")


def check_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return "options" if they are options of `plan embed`. Raises UsageError."""
    known = {option.name: option for option in OPTIONS if option.name not in NOT_IN_OPTIONS}
    for name, value in options.items():
        if name not in known:
            raise UsageError(
                f'"options" in --job-data: {name!r} is unknown; use {", ".join(known)}.'
            )
        option = known[name]
        wanted = str if option.default is None else type(option.default)
        if type(value) is not wanted or (option.choices and value not in option.choices):
            expected = ", ".join(option.choices) if option.choices else wanted.__name__
            raise UsageError(
                f'"options" in --job-data: {name!r} cannot be {value!r}, but: {expected} '
                f"({option.help})."
            )
    return dict(options)


def complete_request(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data with each document as {"path"} or {"name", "text"}.

    If the data do not name a store or a model, FSQUEUE_STORE and FSQUEUE_TEXT_MODEL of this process
    apply to every worker.
    """
    for name, value in data.items():
        if name not in FIELDS or not isinstance(value, FIELDS[name]) or isinstance(value, bool):
            fields = ", ".join(f"{name} ({kind.__name__})" for name, kind in FIELDS.items())
            raise UsageError(
                f"{name!r} in --job-data is unknown, or has the wrong type. rag_ingestion takes: "
                f"{fields}."
            )
    if not data.get("documents"):
        raise UsageError(
            '"documents" in --job-data is missing or empty. Name texts or paths: '
            '{"documents": ["/data/manual.md", "A sentence."], "collection": "manuals"}'
        )
    documents = [document for given in data["documents"] for document in _resolve(given)]
    complete = {**data, "documents": documents}
    store = data.get("store") or os.environ.get("FSQUEUE_STORE")
    if store:
        complete["store"] = os.path.abspath(store)
    model = data.get("model") or os.environ.get("FSQUEUE_TEXT_MODEL")
    if model:
        local = os.path.expanduser(model)
        complete["model"] = os.path.abspath(local) if os.path.isdir(local) else model
    return complete


def _resolve(given: Any) -> Iterator[dict[str, str]]:
    if isinstance(given, Mapping):
        yield _resolve_mapping(given)
    elif not isinstance(given, str) or not given.strip():
        raise UsageError(
            f'"documents" in --job-data: {given!r} is neither a text, nor a path, nor '
            '{"name": ..., "text": ...}.'
        )
    elif given.startswith("/") and "\n" not in given:
        yield from _files(given)
    elif "\n" not in given and len(given) < 4096 and os.path.exists(given):
        yield from _files(os.path.abspath(given))
    elif _looks_like_a_path(given):
        raise UsageError(
            f'"documents" in --job-data: {given!r} looks like a path, and does not exist. Check '
            'it; if it is a text: {"name": "x", "text": ' + f"{given!r}" + "}"
        )
    else:
        digest = hashlib.sha256(given.encode("utf-8", "surrogatepass")).hexdigest()
        yield {"name": f"text-{digest[:12]}", "text": given}


def _resolve_mapping(given: Mapping[str, Any]) -> dict[str, str]:
    are_strings = all(isinstance(value, str) for value in given.values())
    if are_strings and given.keys() == {"path"}:
        return {"path": os.path.abspath(given["path"])}
    if are_strings and given.keys() == {"name", "text"} and given["name"]:
        return {"name": given["name"], "text": given["text"]}
    raise UsageError(
        f'"documents" in --job-data: {dict(given)!r} is neither {{"path": ...}} nor '
        '{"name": ..., "text": ...}.'
    )


def _files(path: str) -> Iterator[dict[str, str]]:
    """Yield a path, which need not exist on this machine, or a directory's files."""
    if not os.path.isdir(path):
        yield {"path": path}
        return
    for name in sorted(os.listdir(path)):
        if not name.startswith(".") and os.path.isfile(f"{path}/{name}"):
            yield {"path": f"{path}/{name}"}


def _looks_like_a_path(text: str) -> bool:
    ending = os.path.splitext(text)[1].lower()
    is_word = len(text.split()) == 1 and ("/" in text or ending not in ("", "."))
    return is_word or (ending in ENDINGS and "\n" not in text)
