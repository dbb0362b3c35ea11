"""The dashboard in a background thread, which also keeps the metrics log."""

from __future__ import annotations

import logging
import os
import threading
import time
from contextlib import nullcontext
from dataclasses import replace

from rich.console import Console, RenderableType
from rich.live import Live

from fsqueue.dashboard.board import View
from fsqueue.dashboard.draw import line, render
from fsqueue.gpu.utilization import GPUMonitor
from fsqueue.metrics.log_file import MetricsLog
from fsqueue.monitor.coordinator import WorkStealingCoordinator
from fsqueue.monitor.log_lines import Lines
from fsqueue.monitor.snapshot import Snapshot
from fsqueue.monitor.spools import SpoolRow
from fsqueue.monitor.workers import Use

log = logging.getLogger(__name__)


class LoadBalancingDashboard:
    """A dashboard beside other work in one process: `start` it, and `stop` it.

    On a terminal it draws; elsewhere it logs lines. Either way it keeps the metrics log, at
    `log_file` in the pool. Without a coordinator it shows nothing, and nothing fails.
    """

    def __init__(
        self,
        coordinator: WorkStealingCoordinator | None,
        gpu_monitor: GPUMonitor | None,
        update_interval: float = 2.0,
        log_file: str = "gpu_metrics.log",
    ) -> None:
        self._coordinator = coordinator
        self._monitor = gpu_monitor
        self._interval_s = update_interval
        self._path = os.path.join(coordinator.pool.root, log_file) if coordinator else ""
        self._console = Console(highlight=False)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._metrics: MetricsLog | None = None

    def start(self) -> None:
        """Start updating in a background thread; does nothing if it runs already."""
        if self._thread is None:
            self._stopping.clear()
            self._thread = threading.Thread(target=self._update_loop, name="dashboard", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Stop the thread after a last frame and restore the terminal. May be called again."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(timeout=10.0)
            self._thread = None

    def _update_loop(self) -> None:
        live = (
            Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None
        )
        lines = Lines()
        with live or nullcontext():
            while True:
                over = self._stopping.is_set()
                snapshot = self._collect_metrics()
                if live is not None:
                    live.update(self._generate_table(snapshot), refresh=True)
                elif snapshot is not None:
                    for line in lines.news(snapshot, time.monotonic()):
                        log.info("%s", line)
                self._log_metrics(snapshot)
                if over:
                    break
                self._stopping.wait(self._interval_s)
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None

    def _collect_metrics(self) -> Snapshot | None:
        """Read the pool; the monitor fills in what no worker reports about this host's GPUs."""
        if self._coordinator is None:
            return None
        snapshot = self._coordinator.snapshot()
        if self._monitor is None:
            return snapshot
        rows = (_fill_gaps(row, self._monitor) for row in snapshot.spools)
        return replace(snapshot, spools=tuple(rows))

    def _generate_table(self, metrics: Snapshot | None) -> RenderableType:
        """Return the frame; the same metrics and size give the same frame."""
        if metrics is None:
            return line("no pool", "dim")
        width, height = self._console.size
        return render(metrics, View(), width, height, ascii=self._console.options.ascii_only)

    def _log_metrics(self, metrics: Snapshot | None) -> None:
        """Append a line per GPU to the metrics log. A full disk costs only those lines."""
        if metrics is None:
            return
        try:
            if self._metrics is None:
                self._metrics = MetricsLog(self._path)
            self._metrics.keep(metrics)
        except OSError as error:
            log.debug("%s could not be opened: %s", self._path, error)


def _fill_gaps(row: SpoolRow, monitor: GPUMonitor) -> SpoolRow:
    if not row.gpu or row.use.compute_percent is not None or row.use.memory_percent is not None:
        return row
    return replace(row, use=Use(**monitor.get_gpu_utilization(row.gpu)))
