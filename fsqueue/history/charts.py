"""A summary drawn as SVG inside a page: a lane per worker, and claims done over time.

Colours are classes of the page's style sheet (`report`), so that they follow light and dark mode.
Every text is escaped here. A chart is yielded in pieces because it may be long.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from html import escape
from typing import Final

from fsqueue.history.attempts import Attempted, Ending
from fsqueue.history.summary import BAD, Lane, Summary
from fsqueue.metrics.history import MetricsHistory
from fsqueue.monitor import format

WIDTH: Final = 1000.0
LEFT: Final = 190.0
"""For the names of lanes."""
LANE: Final = 20.0
LANE_OF_MANY: Final = 14.0
MANY: Final = 40
"""With more lanes than these, each is lower."""
LANES_MAX: Final = 200
PIECES_MAX: Final = 20_000
"""In so many pieces of time all lanes together are drawn, if not attempt by attempt."""
HEIGHT: Final = 130.0
TICKS: Final = 8
STEPS_S: Final = (
    1,
    2,
    5,
    10,
    15,
    30,
    60,
    120,
    300,
    600,
    900,
    1800,
    3600,
    7200,
    14400,
    21600,
    43200,
)
NAME_MAX: Final = 26


class Axis:
    """Time from left to right."""

    def __init__(self, begin: float, end: float, *, left: float = 0.0) -> None:
        self.begin = begin
        self.span = max(end - begin, 1e-3)
        self._left = left

    def x(self, t: float) -> float:
        """Return the x coordinate of a time."""
        share = min(1.0, max(0.0, (t - self.begin) / self.span))
        return self._left + share * (WIDTH - self._left)

    def ticks(self) -> Iterator[tuple[float, str]]:
        """Yield the x coordinate of each tick, and its time since the beginning."""
        step = next((s for s in STEPS_S if self.span / s <= TICKS), None)
        step = step or 86400 * max(1, round(self.span / 86400 / TICKS))
        for number in range(int(self.span // step) + 1):
            yield self.x(self.begin + number * step), format.duration(number * step)

    def grid(self, height: float) -> Iterator[str]:
        """Yield vertical lines with their times below."""
        for x, text in self.ticks():
            yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height:.0f}"/>'
            anchor = "end" if x > WIDTH - 30 else "start" if x < self._left + 20 else "middle"
            yield f'<text x="{x:.1f}" y="{height + 15:.0f}" text-anchor="{anchor}">{text}</text>'


def svg(title: str, height: float, parts: Iterator[str]) -> Iterator[str]:
    """Yield an SVG element around its parts."""
    yield (
        f'<svg viewBox="0 0 {WIDTH:.0f} {height:.0f}" role="img" '
        f'aria-label="{escape(title)}"><title>{escape(title)}</title>'
    )
    yield from parts
    yield "</svg>"


# ---- lanes ----


def lanes(summary: Summary) -> Iterator[str]:
    """Yield a lane for each worker: every attempt, or how busy it was if there are too many."""
    shown = sorted(summary.lanes.values(), key=lambda lane: (lane.host, lane.worker))[:LANES_MAX]
    tall = LANE if len(shown) <= MANY else LANE_OF_MANY
    height = tall * len(shown)
    yield from svg("What each worker did", height + 20, _lanes(summary, shown, tall))


def _lanes(summary: Summary, shown: list[Lane], tall: float) -> Iterator[str]:
    axis = Axis(summary.first, summary.last, left=LEFT)
    yield from axis.grid(tall * len(shown))
    tops = {lane.worker: tall * number for number, lane in enumerate(shown)}
    small = ' class="small"' if tall < LANE else ""
    for lane in shown:
        y = tops[lane.worker]
        whole = f"<title>{escape(lane.worker)}</title>"
        middle = y + tall / 2 + (4 if tall == LANE else 3.5)
        yield f'<text{small} x="0" y="{middle:.1f}">{escape(short(lane.worker))}{whole}</text>'
        if summary.drawn is None:
            yield from _slots(summary, axis, lane, y, tall)
    for attempt in summary.drawn or ():
        if attempt.worker in tops:
            yield _attempt(summary, axis, attempt, tops[attempt.worker], tall)


def short(worker: str) -> str:
    """Return a worker's id with its middle left out, if it is long: its end tells those of a host
    apart."""
    if len(worker) <= NAME_MAX:
        return worker
    end = worker[-(NAME_MAX // 2) :]
    return f"{worker[: NAME_MAX - 1 - len(end)]}…{end}"


def _attempt(summary: Summary, axis: Axis, attempt: Attempted, y: float, tall: float) -> str:
    begin, end = attempt.started or 0.0, summary.end_of(attempt)
    left = axis.x(begin)
    width = max(1.0, axis.x(end) - left - 0.5)
    style = f"{attempt.ending} stolen" if attempt.stolen else attempt.ending
    facts = [attempt.id, attempt.ending, format.duration(attempt.seconds)]
    facts += [f"attempt {attempt.attempt}"] * (attempt.attempt is not None)
    facts += [f"stolen from {attempt.spool}"] * attempt.stolen
    facts += [attempt.error] * bool(attempt.error)
    return (
        f'<rect class="{style}" x="{left:.1f}" y="{y + 3:.0f}" width="{width:.1f}" '
        f'height="{tall - 0.3 * tall:.0f}"><title>{escape(", ".join(facts))}</title></rect>'
    )


def slots_per_piece(summary: Summary) -> int:
    """Return how many slots are added up, so that all lanes together have PIECES_MAX pieces."""
    slots = summary.last // summary.slot_s - summary.first // summary.slot_s + 1
    lanes = max(1, min(LANES_MAX, len(summary.lanes)))
    return max(1, math.ceil(slots * lanes / PIECES_MAX))


def _slots(summary: Summary, axis: Axis, lane: Lane, y: float, tall: float) -> Iterator[str]:
    """Yield a bar for each time in which a lane was equally busy, as high as it was."""
    for first, stop, share, bad in _runs(summary, lane):
        begin, end = first * summary.slot_s, stop * summary.slot_s
        left, right = axis.x(begin), axis.x(end)
        height = max(1.0, share * 0.7 * tall)
        about = f"{format.percent(100 * share, 0)} busy for {format.duration(end - begin)}" + (
            f", {bad:.0f} ended badly" if bad else ""
        )
        yield (
            f'<rect class="{"failed" if bad else "done"}" x="{left:.1f}" '
            f'y="{y + 0.85 * tall - height:.1f}" width="{max(0.5, right - left):.1f}" '
            f'height="{height:.1f}"><title>{about}</title></rect>'
        )


def _runs(summary: Summary, lane: Lane) -> Iterator[tuple[int, int, float, float]]:
    """Yield (first slot, the one after the last, share busy in tenths, how many ended badly).

    Pieces that look alike are one.
    """
    wide = slots_per_piece(summary)
    busy: dict[int, float] = {}
    bad: dict[int, float] = {}
    for slots, into in ((lane.slots, busy), (lane.bad, bad)):
        for slot, amount in slots.items():
            into[slot // wide] = into.get(slot // wide, 0.0) + amount
    last: tuple[int, int, float, float] | None = None
    for piece in sorted(busy):
        # The first and the last piece are as long as there was something in them.
        begin = max(summary.first, piece * wide * summary.slot_s)
        end = min(summary.last, (piece + 1) * wide * summary.slot_s)
        share = round(10 * min(1.0, busy[piece] / max(1e-9, end - begin))) / 10
        found = (piece * wide, (piece + 1) * wide, share, bad.get(piece, 0.0))
        if last is not None and last[1] == found[0] and last[2:] == found[2:] and not found[3]:
            last = (last[0], *found[1:])
            continue
        if last is not None:
            yield last
        last = found
    if last is not None:
        yield last


# ---- claims done over time ----


def throughput(summary: Summary) -> Iterator[str]:
    """Yield how many claims were finished in each slot."""
    yield from svg("Claims done over time", HEIGHT + 20, _throughput(summary))


def _throughput(summary: Summary) -> Iterator[str]:
    axis = Axis(summary.first, summary.last)
    yield from axis.grid(HEIGHT)
    pieces, width_s = _pieces(summary)
    most = max(pieces.values(), default=0.0)
    for slot, count in sorted(pieces.items()):
        left = axis.x(slot * width_s)
        width = max(1.0, axis.x((slot + 1) * width_s) - left - 0.5)
        tall = count / most * (HEIGHT - 16)
        yield (
            f'<rect class="done" x="{left:.1f}" y="{HEIGHT - tall:.1f}" width="{width:.1f}" '
            f'height="{tall:.1f}"><title>{count:,.0f} done in '
            f"{format.duration(width_s)}</title></rect>"
        )
    yield _scale(f"at most {most:,.0f} in {format.duration(width_s)}", "")


def _pieces(summary: Summary) -> tuple[dict[int, float], float]:
    """Return what was done in about sixty slots: more would only show noise."""
    together = max(1, round((summary.last - summary.first) / summary.slot_s / 60))
    pieces: dict[int, float] = {}
    for slot, count in summary.done.items():
        pieces[slot // together] = pieces.get(slot // together, 0.0) + count
    return pieces, summary.slot_s * together


# ---- what was measured over time ----


def gpu_use(history: MetricsHistory, first: float, last: float) -> Iterator[str]:
    """Yield the mean use of the GPUs and of their memory, and how far the GPUs are apart."""
    times = [(t, slot) for t, slot in history.times() if slot.gpus]
    mean = [(t, slot.compute_percent or 0.0) for t, slot in times]
    memory = [(t, slot.memory_percent) for t, slot in times if slot.memory_percent is not None]
    band = [(t, slot.low, slot.high) for t, slot in times]

    def parts() -> Iterator[str]:
        axis = Axis(first, last)
        yield from axis.grid(HEIGHT)
        corners = [(t, high) for t, _, high in band] + [(t, low) for t, low, _ in reversed(band)]
        yield f'<polygon class="band" points="{_points(axis, corners, 100)}"/>'
        yield f'<polyline class="line" points="{_points(axis, mean, 100)}"/>'
        if memory:
            yield f'<polyline class="line second" points="{_points(axis, memory, 100)}"/>'
        yield _scale("100 %", "0 %")

    yield from svg("GPU use", HEIGHT + 20, parts())


def speed(history: MetricsHistory, first: float, last: float, unit: str) -> Iterator[str]:
    """Yield how many items all workers together did per second."""
    curve = [(t, slot.items_per_s) for t, slot in history.times()]
    most = max((value for _, value in curve), default=0.0) or 1.0

    def parts() -> Iterator[str]:
        axis = Axis(first, last)
        yield from axis.grid(HEIGHT)
        yield f'<polyline class="line" points="{_points(axis, curve, most)}"/>'
        yield _scale(f"{format.rate(most)} {escape(unit)}/s", "0")

    yield from svg("Speed", HEIGHT + 20, parts())


def _scale(top: str, bottom: str) -> str:
    """Return what the highest and the lowest value are, at the newest end and over the curves."""
    attributes = f'class="scale" x="{WIDTH - 4:.0f}" text-anchor="end"'
    return (
        f'<text {attributes} y="12">{top}</text><text {attributes} y="{HEIGHT - 4:.0f}">{bottom}'
        f"</text>"
    )


def _y(value: float, most: float) -> float:
    return HEIGHT - value / most * (HEIGHT - 18)


def _points(axis: Axis, curve: list[tuple[float, float]], most: float) -> str:
    return " ".join(f"{axis.x(t):.1f},{_y(value, most):.1f}" for t, value in curve)


LEGEND: Final[dict[str, str]] = {
    "done": "done",
    "done stolen": "done, stolen from another spool",
    Ending.RUNNING: "running",
    Ending.RELEASED: "put back by a worker that left",
    Ending.UNKNOWN: "ending not recorded",
    **{str(ending): str(ending) for ending in sorted(BAD)},
}
LEGEND_OF_SLOTS: Final[dict[str, str]] = {
    "done": "busy, the higher the more",
    "failed": "an attempt ended badly",
}
"""The same where attempts are not drawn one by one."""
