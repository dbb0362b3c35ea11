"""Check the data of `rag_ingestion` once, where it is sent: find documents, refuse what is unclear.

    {"documents": ["/data/a.md", "notes/", "A sentence.", {"name": "b", "text": "..."}],
     "collection": "manuals", "chunk_size": 512}

A document is a path or a text. A string is a path if it is absolute, or names what is there, seen
from where the command was typed; a directory stands for its files. Otherwise it is a text, unless
it looks like a path: that is refused, for nobody wants a file's name embedded for its text.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from typing import Any, Final

from embed.options import OPTIONS
from fsqueue import UsageError

KNOWN: Final = {
    "documents": list,
    "collection": str,
    "chunk_size": int,
    "chunk_overlap": int,
    "model": str,
    "store": str,
}
ELSEWHERE: Final = {"text", *KNOWN}
"""Options of `plan embed` that are not among "options" here."""
ENDINGS: Final = (".txt", ".text", ".md", ".markdown", ".rst")


def checked(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return "options" if they are options of `plan embed`. Raises UsageError."""
    known = {option.name: option for option in OPTIONS if option.name not in ELSEWHERE}
    for name, value in options.items():
        if name not in known:
            raise UsageError(f'"options" in --job-data: {name!r} is none of {", ".join(known)}.')
        option = known[name]
        wanted = str if option.default is None else type(option.default)
        if type(value) is not wanted or (option.choices and value not in option.choices):
            raise UsageError(
                f'"options" in --job-data: {name!r} is not {value!r}, but: {option.help}.'
            )
    return dict(options)


def completed(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data with each document as {"path"} or {"name", "text"}.

    What FSQUEUE_STORE and FSQUEUE_TEXT_MODEL say here counts for every worker, where the data do
    not say it.
    """
    for name, value in data.items():
        if name not in KNOWN or not isinstance(value, KNOWN[name]) or isinstance(value, bool):
            raise UsageError(
                f"{name!r} in --job-data is not known, or not of the right type. A rag_ingestion "
                f"knows: {', '.join(f'{name} ({kind.__name__})' for name, kind in KNOWN.items())}."
            )
    if not data.get("documents"):
        raise UsageError(
            '"documents" in --job-data is missing or empty. Name texts or paths: '
            '{"documents": ["/data/manual.md", "A sentence."], "collection": "manuals"}'
        )
    found = {**data, "documents": [one for given in data["documents"] for one in _found(given)]}
    store = data.get("store") or os.environ.get("FSQUEUE_STORE")
    if store:
        found["store"] = os.path.abspath(store)
    model = data.get("model") or os.environ.get("FSQUEUE_TEXT_MODEL")
    if model:
        local = os.path.expanduser(model)
        found["model"] = os.path.abspath(local) if os.path.isdir(local) else model
    return found


def _found(given: Any) -> Iterator[dict[str, str]]:
    if isinstance(given, Mapping):
        yield _named(given)
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
            f'"documents" in --job-data: {given!r} looks like a path, and nothing is there. Check '
            'it; if it is a text: {"name": "x", "text": ' + f"{given!r}" + "}"
        )
    else:
        yield {"name": f"text-{hashlib.sha256(_bytes(given)).hexdigest()[:12]}", "text": given}


def _named(given: Mapping[str, Any]) -> dict[str, str]:
    texts = all(isinstance(value, str) for value in given.values())
    if texts and given.keys() == {"path"}:
        return {"path": os.path.abspath(given["path"])}
    if texts and given.keys() == {"name", "text"} and given["name"]:
        return {"name": given["name"], "text": given["text"]}
    raise UsageError(
        f'"documents" in --job-data: {dict(given)!r} is neither {{"path": ...}} nor '
        '{"name": ..., "text": ...}.'
    )


def _files(path: str) -> Iterator[dict[str, str]]:
    """Yield a file, which workers may see though it is not seen here; or a directory's files."""
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


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
