"""This machine's GPUs: the only door to pynvml.

Which GPU is "GPU 2"? NVML and nvidia-smi count every card in the order of the PCI bus and ignore
CUDA_VISIBLE_DEVICES. CUDA obeys that variable, but unless CUDA_DEVICE_ORDER is PCI_BUS_ID it counts
from the fastest card, by an unpublished rule: among unequal cards its 2 may be another. Here a
number always means nvidia-smi's. To make that true for CUDA, too, fsqueue sets CUDA_DEVICE_ORDER
for itself (`use_pci_order`, before CUDA starts) and passes the GPU's UUID to each worker that it
starts (`cuda_environ`). Another order in the environment is warned about where it matters.

MIG: a card that is cut into instances does no work as a whole, so its instances are listed in its
place. One process can use only one of them; each one listed here can have a worker. A machine
without a driver has no GPUs, and that is not an error.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from fsqueue.gpu import nvidia_smi

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, or one MIG instance: then `index` is its card's. `memory_mib` is None if unknown."""

    index: int
    uuid: str
    name: str
    memory_mib: int | None
    mig: bool = False

    @property
    def memory_gib(self) -> float | None:
        """The memory in GiB, as `weights.short_name` takes it."""
        return None if self.memory_mib is None else self.memory_mib / 1024


@dataclass(frozen=True, slots=True)
class Card:
    """What one CUDA device number stands for: a GPU, or one cut into the instances in `gpus`."""

    uuid: str
    gpus: list[Gpu]


def all_gpus() -> list[Gpu]:
    """Return every GPU that this process may open, in PCI order; empty without a driver."""
    return [gpu for card in _cards() for gpu in card.gpus]


def visible_gpus(environ: Mapping[str, str] = os.environ) -> list[Gpu]:
    """Return the GPUs that CUDA_VISIBLE_DEVICES leaves, in the order of cuda:0, cuda:1, ...

    The variable is read as CUDA reads it. It holds numbers, or UUIDs that may be abbreviated while
    they stay unique; its first entry decides which. The first entry that is not a GPU, such as -1,
    ends the list; a GPU listed twice empties it; if it is not set, every GPU is visible.
    """
    wanted = environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is not None and not _entries(wanted):
        return []  # without asking the driver, which takes longer than all else of a start
    cards = _cards()
    if wanted is None or not wanted.startswith(("GPU-", "MIG-")):
        _warn_of_order(environ, cards)
    if wanted is None:
        return [gpu for card in cards for gpu in card.gpus]
    found: list[Gpu] = []
    for entry in _entries(wanted):
        gpu = _find(entry, cards)
        if gpu is None:
            break
        if gpu in found:
            return []
        found.append(gpu)
    return found


def driver_version() -> str:
    """Return the version of the NVIDIA driver, "" if there is none or it does not say."""
    if nvml := Nvml.open():
        with closing(nvml):
            return str(nvml.ask("SystemGetDriverVersion") or "")
    rows = nvidia_smi.query("driver_version")
    return rows[0][0] if rows else ""


def use_pci_order(environ: MutableMapping[str, str] = os.environ) -> None:
    """Make CUDA count as NVML does, in this process and its children; before CUDA starts."""
    environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")


def cuda_environ(gpu: Gpu) -> dict[str, str]:
    """Return the variables that make `gpu` the only one a child process sees."""
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": gpu.uuid}


def _entries(wanted: str) -> list[int | str]:
    """Split CUDA_VISIBLE_DEVICES up to its first entry of another kind; empty if one repeats."""
    kind = wanted[:4] if wanted.startswith(("GPU-", "MIG-")) else ""
    entries: list[int | str] = []
    for text in wanted.split(","):
        number = re.match(r"\+?([0-9]{1,9})", text.strip())  # CUDA, too, takes "1st" for 1
        if not (text.startswith(kind) if kind else number):
            break
        entry = int(number[1]) if number and not kind else text
        if entry in entries:
            return []
        entries.append(entry)
    return entries


def _find(entry: int | str, cards: Sequence[Card]) -> Gpu | None:
    if isinstance(entry, int):
        chosen = [card.gpus for card in cards[entry : entry + 1]]
    elif entry.startswith("MIG-"):
        chosen = [[gpu] for card in cards for gpu in card.gpus if gpu.uuid == entry]
    else:
        chosen = [card.gpus for card in cards if card.uuid.startswith(entry)]
    # CUDA uses the first instance of a card that is cut; an ambiguous prefix names no card.
    return chosen[0][0] if len(chosen) == 1 and chosen[0] else None


def _warn_of_order(environ: Mapping[str, str], cards: Sequence[Card]) -> None:
    order = environ.get("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    if order != "PCI_BUS_ID" and len({gpu.name for card in cards for gpu in card.gpus}) > 1:
        log.warning(
            "CUDA_DEVICE_ORDER=%s: CUDA will count these unequal GPUs in another order than "
            "nvidia-smi, and fsqueue may show one for another. Set it to PCI_BUS_ID.",
            order,
        )


def _cards() -> list[Card]:
    if nvml := Nvml.open():
        with closing(nvml):
            return nvml.cards()
    cards = []
    for index, uuid, name, mib in nvidia_smi.query("index", "uuid", "name", "memory.total"):
        if index.isdecimal():
            gpu = Gpu(int(index), uuid, name, int(mib) if mib.isdecimal() else None)
            cards.append(Card(uuid, [gpu]))
    return cards


class Nvml:
    """A session with the driver. What it cannot answer is None, never a guess."""

    def __init__(self, library: Any) -> None:
        self._library = library

    @classmethod
    def open(cls) -> Nvml | None:
        """Open a session; None if there is no driver."""
        try:
            import pynvml
        except ImportError:
            return None
        try:
            pynvml.nvmlInit()
        except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded):
            return None
        except pynvml.NVMLError as error:
            log.warning("The NVIDIA driver does not answer: %s. See nvidia-smi.", error)
            return None
        return cls(pynvml)

    def close(self) -> None:
        """Close the session; the driver counts sessions."""
        self.ask("Shutdown")

    def ask(self, question: str, *args: object) -> Any:
        """Return what `nvml{question}` answers; None if this GPU, driver or binding cannot."""
        function = getattr(self._library, f"nvml{question}", None)
        try:
            return function(*args) if function else None
        except self._library.NVMLError:
            return None

    def cards(self) -> list[Card]:
        """Return the cards that this process may open, in NVML's order."""
        cards = []
        for index in range(self.ask("DeviceGetCount") or 0):
            try:
                cards.append(self._card(index))
            except self._library.NVMLError_NoPermission:
                continue  # another job's GPU, behind a cgroup; CUDA does not count it either
            except self._library.NVMLError as error:
                log.warning("GPU %d cannot be used: %s. See nvidia-smi and dmesg.", index, error)
        return cards

    def _card(self, index: int) -> Card:
        handle = self._library.nvmlDeviceGetHandleByIndex(index)
        card = self._gpu(index, handle)
        mode = self.ask("DeviceGetMigMode", handle)  # None: a card that cannot be cut
        if not mode or mode[0] == 0:
            return Card(card.uuid, [card])
        slices = [
            self.ask("DeviceGetMigDeviceHandleByIndex", handle, place)
            for place in range(self.ask("DeviceGetMaxMigDeviceCount", handle) or 0)
        ]
        return Card(card.uuid, [self._gpu(index, mig, mig=True) for mig in slices if mig])

    def _gpu(self, index: int, handle: Any, *, mig: bool = False) -> Gpu:
        uuid = self._library.nvmlDeviceGetUUID(handle)
        name = self._library.nvmlDeviceGetName(handle)
        memory = self.ask("DeviceGetMemoryInfo", handle)
        return Gpu(index, uuid, name, memory and memory.total >> 20, mig)
