"""Test whether a directory's file system keeps the promises that a pool relies on.

`one_host` runs the checks that a single process can make, `two_hosts` those that need a second
host; `contention` judges races, and `rendezvous` lets two hosts exchange messages through files.
"""

from __future__ import annotations

from fsqueue.maintenance.doctor.examine import Verdict, examine
from fsqueue.maintenance.doctor.one_host import Finding, Level, refuse_unfit

__all__ = ["Finding", "Level", "Verdict", "examine", "refuse_unfit"]
