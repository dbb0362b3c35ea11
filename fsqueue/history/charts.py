"""A summary drawn as SVG inside a page: a lane per worker, and claims done over time.

Colours are classes of the page's style sheet (`report`), so that they follow light and dark mode.
Every text is escaped here. A chart is yielded in pieces because it may be long.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Final

from fsqueue.history.attempts import Attempted
from fsqueue.history.summary import BAD, Lane, Summary
from fsqueue.monitor import format

WIDTH: Final = 1000.0
LEFT: Final = 190.0
"""For the names of lanes, and the numbers of the axis."""
LANE: Final = 20.0
LANES_MAX: Final = 200
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
NAME_MAX: Final = 28


class Axis:
    """Time from left to right."""

    def __init__(self, summary: Summary) -> None:
        self.begin = summary.first
        self.span = max(summary.last - summary.first, 1e-3)

    def x(self, t: float) -> float:
        """Return the x coordinate of a time."""
        share = min(1.0, max(0.0, (t - self.begin) / self.span))
        return LEFT + share * (WIDTH - LEFT)

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
            anchor = "end" if x > WIDTH - 30 else "start" if x < LEFT + 10 else "middle"
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
    height = LANE * len(shown)
    yield from svg("What each worker did", height + 20, _lanes(summary, shown, height))


def _lanes(summary: Summary, shown: list[Lane], height: float) -> Iterator[str]:
    axis = Axis(summary)
    yield from axis.grid(height)
    tops = {lane.worker: LANE * number for number, lane in enumerate(shown)}
    for lane in shown:
        name = lane.worker if len(lane.worker) <= NAME_MAX else f"{lane.worker[: NAME_MAX - 1]}…"
        y = tops[lane.worker]
        whole = f"<title>{escape(lane.worker)}</title>"
        yield f'<text x="0" y="{y + 14:.0f}">{escape(name)}{whole}</text>'
        if summary.drawn is None:
            yield from _slots(summary, axis, lane, y)
    for attempt in summary.drawn or ():
        if attempt.worker in tops:
            yield _attempt(summary, axis, attempt, tops[attempt.worker])


def _attempt(summary: Summary, axis: Axis, attempt: Attempted, y: float) -> str:
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
        f'height="{LANE - 6:.0f}"><title>{escape(", ".join(facts))}</title></rect>'
    )


def _slots(summary: Summary, axis: Axis, lane: Lane, y: float) -> Iterator[str]:
    """Yield a bar for each slot of a lane, as high as the worker was busy."""
    for slot, seconds in sorted(lane.slots.items()):
        begin = slot * summary.slot_s
        left, right = axis.x(begin), axis.x(begin + summary.slot_s)
        share = min(1.0, seconds / summary.slot_s)
        tall = max(1.0, share * (LANE - 6))
        bad = lane.bad.get(slot, 0)
        about = f"{format.percent(100 * share, 0)} busy" + (
            f", {bad:.0f} ended badly" if bad else ""
        )
        yield (
            f'<rect class="{"failed" if bad else "done"}" x="{left:.1f}" '
            f'y="{y + LANE - 3 - tall:.1f}" width="{max(0.5, right - left):.1f}" '
            f'height="{tall:.1f}"><title>{about}</title></rect>'
        )


# ---- claims done over time ----


def throughput(summary: Summary) -> Iterator[str]:
    """Yield how many claims were finished in each slot."""
    yield from svg("Claims done over time", HEIGHT + 20, _throughput(summary))


def _throughput(summary: Summary) -> Iterator[str]:
    axis = Axis(summary)
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
    yield f'<text x="0" y="14">at most {most:,.0f}</text>'
    yield f'<text x="0" y="30">in {format.duration(width_s)}</text>'


def _pieces(summary: Summary) -> tuple[dict[int, float], float]:
    """Return what was done in about sixty slots: more would only show noise."""
    together = max(1, round((summary.last - summary.first) / summary.slot_s / 60))
    pieces: dict[int, float] = {}
    for slot, count in summary.done.items():
        pieces[slot // together] = pieces.get(slot // together, 0.0) + count
    return pieces, summary.slot_s * together


LEGEND: Final = {
    "done": "done",
    "done stolen": "done, stolen from another spool",
    "running": "running",
    "released": "put back by a worker that left",
    "unknown": "ending not recorded",
    **{str(ending): str(ending) for ending in sorted(BAD)},
}
