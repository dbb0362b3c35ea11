"""What made each output: worker, host, GPU, versions, and what was asked for (R78).

What a worker records when it publishes (`records.checksums`) is joined here with what its claim
says. Nothing of it is in the journals, the statuses or the leases, so it stays when those are
removed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from fsqueue.errors import FsqueueError
from fsqueue.handler import Handler, load_handler
from fsqueue.pool import claims
from fsqueue.pool.layout import State
from fsqueue.pool.names import ClaimName
from fsqueue.pool.settings import PoolDirectory
from fsqueue.records.checksums import Content, parse_record, read_lines
from fsqueue.records.journal import event_time
from fsqueue.storage.untrusted import number, printable

Facts = Mapping[str, Any]
TEXT_MAX: Final = 300


@dataclass(frozen=True, slots=True)
class Provenance:
    """What made one output. What was not recorded, as by earlier versions, is None or empty."""

    worker: str
    host: str = ""
    gpu: Mapping[str, str] = field(default_factory=dict)
    """name, uuid and driver; empty for a worker on the CPU."""
    cpu: str = ""
    cpus: int | None = None
    """Logical CPUs of the host."""
    system: str = ""
    """Kernel and architecture."""
    slurm: Mapping[str, str] = field(default_factory=dict)
    fsqueue: str = ""
    python: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of the packages that the worker had imported when it published the output."""
    finished_at: float | None = None
    """When the output was published, in seconds since 1970 by the worker's clock."""
    seconds: float | None = None
    """How long the run took, from reading the claim to the published output."""
    attempt: int | None = None
    returns: int | None = None
    """How often the claim had been put back before: checkpoints of those runs may be in the output.
    """
    bytes: int | None = None
    crc32: str = ""
    handler: str = ""
    options_sha256: str = ""
    """Of the handler's options as they were planned: equal for claims of equal options."""
    program: tuple[str, ...] = ()
    """The program that was run, with its arguments; `{output}` stands for the output."""
    exit_status: int | None = None
    """The program's: that of every published output is 0."""


@dataclass(frozen=True, slots=True)
class _Line:
    """The record of one output, and what its worker had recorded about itself by then."""

    worker: str
    content: Content
    facts: Facts
    about: Facts
    versions: Facts


class Provenances:
    """The records of a pool's outputs, read once."""

    def __init__(self, pool: PoolDirectory, outputs: Container[str] | None = None) -> None:
        """`outputs`: of which ones, by their names in outputs/; None: of all."""
        self._lines: dict[str, _Line] = {}
        writer = ""
        about: Facts = {}
        versions: Facts = {}
        for worker, line in read_lines(pool):
            if worker != writer:
                writer, about, versions = worker, {}, {}
            if b'"output"' in line and (record := parse_record(line)) is not None:
                output, content = record
                if outputs is None or output in outputs:
                    self._keep(output, _Line(worker, content, _object(line), about, versions))
            elif line.startswith(b'{"worker"'):
                about = _part(line, "worker")
            elif line.startswith(b'{"versions"'):
                versions = _part(line, "versions")

    def _keep(self, output: str, line: _Line) -> None:
        """Keep the newest record of an output, which was made again if it has several."""
        other = self._lines.get(output)
        if other is None or event_time(dict(other.facts)) <= event_time(dict(line.facts)):
            self._lines[output] = line

    def of(
        self, output: str, handler: Handler, options: Facts, payload: Facts
    ) -> Provenance | None:
        """Return what made an output, by its name in outputs/, of a claim with this content.

        None if nothing was recorded, because its worker was killed at that moment.
        """
        line = self._lines.get(output)
        if line is None:
            return None
        about, facts = line.about, line.facts
        program = tuple(handler.program(options, payload))
        return Provenance(
            worker=line.worker,
            host=_text(about.get("host")),
            gpu=_texts(about.get("gpu")),
            cpu=_text(about.get("cpu")),
            cpus=_whole(about.get("cpus")),
            system=_text(about.get("system")),
            slurm=_texts(about.get("slurm")),
            fsqueue=_text(about.get("fsqueue")),
            python=_text(about.get("python")),
            versions=_texts(line.versions),
            finished_at=event_time(dict(facts)) if "t" in facts else None,
            seconds=number(facts.get("seconds")),
            attempt=_whole(facts.get("attempt")),
            returns=_whole(facts.get("returns")),
            bytes=line.content.size,
            crc32=line.content.crc32,
            handler=handler.name,
            options_sha256=digest(options),
            program=program,
            exit_status=0 if program else None,
        )


def provenance(pool: PoolDirectory, name: ClaimName) -> Provenance | None:
    """Return what made the output of a claim in done/; None if nothing was recorded."""
    try:
        claim = claims.read_claim(pool, name, state=State.DONE)
    except FsqueueError:
        return None  # damaged, which `check` reports
    handler = _handler(claim.handler)
    output = f"{name.id}{claim.suffix or handler.suffix}"
    found = Provenances(pool, {output})
    return found.of(output, handler, claim.options, claim.payload)


def _handler(name: str) -> Handler:
    try:
        return load_handler(name)
    except FsqueueError:  # not installed here: its program is not known
        handler = Handler()
        handler.name = name
        return handler


def digest(options: Facts) -> str:
    """Return the SHA-256 of options, in hexadecimal digits."""
    text = json.dumps(options, sort_keys=True, separators=(",", ":"), default=dict)
    return hashlib.sha256(text.encode()).hexdigest()


# ---- reading what others wrote ----


def _object(line: bytes) -> Facts:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _part(line: bytes, key: str) -> Facts:
    found = _object(line).get(key)
    return found if isinstance(found, dict) else {}


def _whole(value: object) -> int | None:
    found = number(value)
    return None if found is None else int(found)


def _text(value: object) -> str:
    return printable(value, TEXT_MAX) if isinstance(value, str) else ""


def _texts(value: object) -> dict[str, str]:
    if not isinstance(value, Mapping):
        return {}
    return {printable(key, TEXT_MAX): _text(each) for key, each in value.items() if _text(each)}
