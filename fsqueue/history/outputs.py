"""Which input each output was made from, and the outputs under the names of their inputs.

Where an input was planned again, with the same handler and options, because it had changed, the
outputs of its former version are left out.

Links (`link_outputs`) are hard links: they cost nothing, and stay if the pool goes. They are the
same file as the pool's output, so what must change should be copied first. Nothing that is there is
ever replaced.
"""

from __future__ import annotations

import errno
import filecmp
import json
import os
import shutil
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fsqueue.errors import NotSupportedError, PoolError, UsageError
from fsqueue.handler import Handler, load_handler
from fsqueue.history.provenance import Provenance, Provenances
from fsqueue.pool.reader import PlanView, PoolReader
from fsqueue.pool.settings import PoolDirectory
from fsqueue.storage import atomic

OTHER_FILE_SYSTEM: Final = (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK)


@dataclass(frozen=True, slots=True)
class Output:
    """The output of one finished claim, and the inputs it was made from."""

    id: str
    path: Path
    inputs: tuple[Path, ...]
    members: tuple[str, ...] = ()
    """If the output is a tar of one file per input: their names in it, in the order of `inputs`."""
    provenance: Provenance | None = None
    """What made it, where that was asked for and recorded."""


@dataclass(slots=True)
class Linked:
    """What `link_outputs` did."""

    made: int = 0
    already: int = 0
    in_the_way: list[str] = field(default_factory=list)
    """Names that other files have, which were left alone."""


def outputs(pool: PoolDirectory, *, provenance: bool = False) -> Iterator[Output]:
    """Yield the output of every finished claim, plan by plan, in the order of the inputs.

    `provenance`: read what made each of them, too. Raises UsageError if a plan's handler is not
    installed here.
    """
    reader = PoolReader(pool.root)
    plans = reader.plans()
    handlers = {name: load_handler(name) for name in {plan.handler for plan in plans}}
    newest = _newest(plans, handlers)
    made = Provenances(pool) if provenance else None
    for plan in plans:
        handler, work = handlers[plan.handler], _work_of(plan, handlers)
        for claim in reader.claims(plan):
            if not (claim.done and claim.output):
                continue
            payload = reader.payload(claim)
            inputs = handler.inputs(payload)
            if inputs and all(newest.get((work, path), 0) > plan.number for path in inputs):
                continue
            path = Path(claim.output)
            yield Output(
                claim.id,
                path,
                tuple(map(Path, inputs)),
                tuple(handler.members(payload)),
                made.of(path.name, handler, plan.options, payload) if made else None,
            )


def unfinished(reader: PoolReader) -> int:
    """Return how many claims are not done, those that were given up aside."""
    return sum(
        not (claim.done or claim.given_up)
        for plan in reader.plans()
        for claim in reader.claims(plan)
    )


def _work_of(plan: PlanView, handlers: dict[str, Handler]) -> str:
    """Return what is done with the inputs of a plan, in a form that can be compared."""
    decisive = handlers[plan.handler].result_options(plan.options)
    return json.dumps([plan.handler, decisive], sort_keys=True, default=dict)


def _newest(plans: list[PlanView], handlers: dict[str, Handler]) -> dict[tuple[str, str], int]:
    """Return the last plan of each input for each kind of work: a plan holds what is new to it."""
    if len(plans) < 2:
        return {}
    works = [(plan, _work_of(plan, handlers)) for plan in plans]
    return {(work, path): plan.number for plan, work in works for path in plan.inputs}


# ---- under the inputs' names ----


def link_outputs(pool: PoolDirectory, directory: str) -> Linked:
    """Lay every output into `directory` under the name of its input, and make what is missing.

    Inputs in several directories keep their sub-directories, below the one that all are in. An
    output of several inputs is unpacked if it is an archive of theirs, else named by its claim; one
    of several outputs of an input has its claim's id in its name.

    Raises UsageError if `directory` is in the pool; NotSupportedError if it is on another file
    system.
    """
    target = Path(os.path.abspath(directory))
    if target.is_relative_to(pool.root):
        raise UsageError(f"--link {directory} is inside the pool, where nothing may be added.")
    found = list(outputs(pool))
    for output in found:
        _refuse_bad_names(output)
    each = [path for output in found for path in output.inputs]
    above = os.path.commonpath([path.parent for path in each]) if each else ""
    count = Counter(output.inputs[0] for output in found if len(output.inputs) == 1)
    done = Linked()
    for output in found:
        suffix = output.path.name.removeprefix(output.id)
        if output.members:
            pairs = zip(output.inputs, output.members, strict=True)
            places = [
                target / path.relative_to(above).parent / _plain(path, m) for path, m in pairs
            ]
            _unpack(output, places, done)
        elif len(output.inputs) == 1:
            name = str(output.inputs[0].relative_to(above))
            extra = f".{output.id}" if count[output.inputs[0]] > 1 else ""
            _link(output.path, target / f"{name}{extra}{suffix}", done)
        else:
            _link(output.path, target / output.path.name, done)
    return done


def _plain(path: Path, member: str) -> str:
    """Return a member's name without the number that told it from others in its archive."""
    return member[max(0, member.find(path.name)) :]


def _refuse_bad_names(output: Output) -> None:
    """Raise PoolError for names that a claim gives and that would lead out of the directory."""
    for path in output.inputs:
        if not path.is_absolute() or ".." in path.parts:
            raise PoolError(f"the claim {output.id} names the input {str(path)!r}; it was edited.")
    for name in output.members:
        if "/" in name or "\0" in name or name in ("", ".", ".."):
            raise PoolError(f"the claim {output.id} names the member {name!r}; it was edited.")


def _link(source: Path, target: Path, done: Linked) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
        done.made += 1
    except FileExistsError:
        # RACE: or another process makes the same links
        if target.is_file() and _is_same(source, target):
            done.already += 1
        else:
            done.in_the_way.append(str(target))
    except OSError as error:
        if error.errno not in OTHER_FILE_SYSTEM:
            raise
        raise NotSupportedError(
            f"{target} cannot be a hard link to {source} ({error.strerror}). Choose a directory on "
            f"the pool's file system, or copy what fsqueue outputs lists."
        ) from error


def _is_same(source: Path, target: Path) -> bool:
    """Return whether two files are one, or hold the same bytes."""
    return os.path.samefile(source, target) or filecmp.cmp(source, target, shallow=False)


def _unpack(output: Output, targets: list[Path], done: Linked) -> None:
    """Write the members of an archive, each whole or not at all."""
    try:
        with tarfile.open(output.path) as archive:
            for name, target in zip(output.members, targets, strict=True):
                target.parent.mkdir(parents=True, exist_ok=True)
                private = f"{target.parent}/.{target.name}.{output.id}"
                file = archive.extractfile(name)
                if file is None:
                    raise KeyError(name)
                try:
                    with open(private, "wb") as copy:
                        shutil.copyfileobj(file, copy)
                    _link(Path(private), target, done)
                finally:
                    atomic.discard(private)
    except (tarfile.TarError, KeyError, EOFError) as error:
        raise PoolError(
            f"{output.path} is not the archive that its claim made ({error}): see fsqueue check "
            f"POOL --deep."
        ) from error
