"""Examine a directory and decide whether it is suitable for a pool."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fsqueue.errors import UsageError
from fsqueue.maintenance.doctor.one_host import Finding, fit, thorough
from fsqueue.maintenance.doctor.two_hosts import TwoHostTrial, recommend
from fsqueue.storage.mounts import mount_of


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a directory is suitable for a pool, why, and the settings to use there."""

    directory: str
    suitable: bool
    findings: tuple[Finding, ...]
    other_host: str | None
    """The host that was met, with `peer`."""
    echo_s: float | None
    """How long one host's change took to be seen and answered by the other."""
    lease_s: float
    steal_interval_s: float


def examine(
    directory: str,
    *,
    peer: bool = False,
    wait_s: float = 300.0,
    patience_s: float = 35.0,
    on_finding: Callable[[Finding], object] | None = None,
    on_waiting: Callable[[], object] | None = None,
) -> Verdict:
    """Test in `directory` what fsqueue assumes of a file system, and clean up afterwards.

    With `peer`, also meet another host that does the same at the same time: wait up to `wait_s` for
    it, and up to `patience_s` for what stat shows late. `on_finding` is called with each finding as
    it is made, `on_waiting` before the wait. Raises UsageError if there is no such directory, and
    PoolError if the other host falls silent.
    """
    if not os.path.isdir(directory):
        raise UsageError(f"{directory} is not a directory. Name one that all workers can see.")
    directory = os.path.abspath(directory)
    findings: list[Finding] = []

    def collect(found: Iterable[Finding]) -> None:
        for finding in found:
            findings.append(finding)
            if on_finding is not None:
                on_finding(finding)

    trial = TwoHostTrial(directory, wait_s, patience_s)
    collect(thorough(directory))
    if peer:
        if on_waiting is not None:
            on_waiting()
        collect(trial.run())
    lease_s, interval_s = recommend(trial.echo_s, mount_of(directory).silence_s)
    return Verdict(
        directory=directory,
        suitable=fit(findings),
        findings=tuple(findings),
        other_host=trial.other or None,
        echo_s=round(trial.echo_s, 3) if peer else None,
        lease_s=lease_s,
        steal_interval_s=interval_s,
    )
