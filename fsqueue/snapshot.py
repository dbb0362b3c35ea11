"""See a pool as it is at one moment: what is true of its claims, what its workers report.

Two kinds of facts, kept apart. What is true comes from names in directories (`census.py`): how many
claims wait, run, failed and are done. What is reported comes from status/ and events/ and is a hint
(I8): speed, ETA, GPU use, who stole what. A hint that is missing is None or zero, never a guess.

The reader writes nothing and moves nothing. It keeps no clock of another host beside its own: how
long a worker did nothing is reckoned from two times of that worker's own clock.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from fsqueue import atomic
from fsqueue.census import Amount, Census, Count
from fsqueue.errors import PoolError
from fsqueue.journals import Event, Journals, Steal
from fsqueue.layout import ORDER
from fsqueue.leases import LeaseName, Observer, Process, Standing, lease_names
from fsqueue.names import WORKER, ClaimName
from fsqueue.pool import Pool, Spool, read_json, read_spool
from fsqueue.status import Status, printable, read_status
from fsqueue.roster import Roster, WorkerRow

...
