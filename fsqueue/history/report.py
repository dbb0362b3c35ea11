"""How a pool went, or is going, as one HTML page that needs nothing but a browser.

No scripts, fonts or images from elsewhere: the page's policy forbids them all, and every text from
the pool is escaped. Claims are counted as `fsqueue status` counts them; what each worker did when
comes from the workers' journals and is a hint (I8).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from html import escape
from itertools import islice
from typing import Final

from fsqueue.errors import FsqueueError
from fsqueue.history import charts
from fsqueue.history.attempts import attempts
from fsqueue.history.summary import BAD, ENDINGS, Summary
from fsqueue.metrics.history import read_metrics
from fsqueue.metrics.log_file import metrics_path
from fsqueue.monitor import format
from fsqueue.monitor.gpu_hours import GpuHours, gpu_hours
from fsqueue.monitor.snapshot import Reader, Snapshot
from fsqueue.monitor.time_use import TimeUse
from fsqueue.pool import claims
from fsqueue.pool.layout import State
from fsqueue.pool.settings import PoolDirectory
from fsqueue.storage.untrusted import printable, read_json

FAILURES_MAX: Final = 50
LINES_MAX: Final = 15
STEALS_MAX: Final = 30
ROWS_MAX: Final = 1000
DENSE: Final = 40
"""Tables of more rows than this are set smaller."""
LONG: Final = 9
"""Longer texts than this are set smaller, so that they fit into a tile."""

STYLE: Final = """
:root { color-scheme: light dark; --ink: #1d2329; --dim: #66707a; --line: #dde2e7; --page: #fbfcfd;
  --card: #fff; --done: #2f7fb8; --stolen: #7a5bbf; --bad: #c8372d; --killed: #d9822b;
  --running: #3a9d5d; --quiet: #a4adb6; }
@media (prefers-color-scheme: dark) { :root { --ink: #dfe5ea; --dim: #8d98a3; --line: #2c343c;
  --page: #14181c; --card: #1b2126; --done: #4b9bd6; --stolen: #a78be6; --bad: #ef6a60;
  --killed: #eda24e; --running: #58bd7d; --quiet: #5d6873; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1120px; padding: 28px 24px 60px; background: var(--page);
  color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 22px; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 16px; margin: 36px 0 10px; }
p { margin: 4px 0; color: var(--dim); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 10px;
  margin: 20px 0 0; padding: 0; }
.tiles div { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 10px 14px; }
.tiles dt { color: var(--dim); font-size: 13px; }
.tiles dd { margin: 0; font-size: 21px; font-variant-numeric: tabular-nums; }
.tiles .long { font-size: 15px; line-height: 32px; }
.tiles small { color: var(--dim); font-variant-numeric: tabular-nums; }
.bar { display: flex; height: 10px; margin-top: 14px; border-radius: 5px; overflow: hidden;
  background: var(--line); }
.bar i { display: block; }
.wide { overflow-x: auto; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; padding: 6px 14px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { color: var(--dim); font-weight: 500; font-size: 13px; text-align: right; }
th, td { padding: 5px 12px 5px 0; white-space: nowrap; }
td { border-top: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child, .text { text-align: left; }
svg { display: block; width: 100%; min-width: 700px; height: auto; margin: 6px 0; }
svg text { fill: var(--dim); font: 12px system-ui, sans-serif; }
.chart { direction: rtl; }  /* scrolled to the newest on a narrow screen */
.chart svg { direction: ltr; }
svg .small { font-size: 10px; }
svg .scale { paint-order: stroke; stroke: var(--card); stroke-width: 4px; }
.grid { stroke: var(--line); }
.done { fill: var(--done); background: var(--done); }
.stolen { fill: var(--stolen); background: var(--stolen); }
.failed { fill: var(--bad); background: var(--bad); }
.killed, .lost { fill: var(--killed); background: var(--killed); }
.running { fill: var(--running); background: var(--running); }
.line { fill: none; stroke: var(--done); stroke-width: 1.5; }
.line.second { stroke: var(--stolen); }
.band { fill: var(--done); opacity: .2; }
.faint { opacity: .3; }
.released, .unknown { fill: var(--quiet); background: var(--quiet); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 13px; margin-bottom: 8px; }
.legend i { display: inline-block; width: 11px; height: 11px; border-radius: 2px;
  margin-right: 6px; }
details { border-top: 1px solid var(--line); padding: 6px 0; }
details:first-of-type { border-top: none; }
summary { overflow-wrap: anywhere; }
summary b { word-break: break-all; }
summary small { color: var(--dim); }
.dense { font-size: 13px; }
.dense td { padding-top: 2px; padding-bottom: 2px; }
pre { margin: 6px 0; padding: 10px; overflow-x: auto; font-size: 13px; background: var(--page);
  border-radius: 6px; }
"""
POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'"


def page(
    pool: PoolDirectory, *, snapshot: Snapshot | None = None, every_s: float | None = None
) -> Iterator[str]:
    """Yield the page in pieces, of this snapshot or of one taken now.

    `every_s`: it will be written again so often, and the browser shall load it again. Once all is
    done it is not, and says so.
    """
    snapshot = snapshot or Reader(pool).snapshot()
    live_s = None if snapshot.finished else every_s
    refresh = f'<meta http-equiv="refresh" content="{max(1, round(live_s))}">\n' if live_s else ""
    summary = Summary(now=snapshot.taken_at).add(attempts(pool))
    title = f"fsqueue: {snapshot.pool}"
    yield (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="generator" content="fsqueue report">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f"{refresh}"
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
    )
    yield from _heading(snapshot, summary, live_s)
    if summary.last >= summary.first:
        yield '<h2>Claims done over time</h2>\n<div class="wide chart">'
        yield from charts.throughput(summary)
        yield "</div>\n"
    yield from _curves(pool, snapshot, summary)
    yield from _failures(pool, snapshot)
    if summary.last >= summary.first:
        yield from _lanes(summary)
    yield from _spools(snapshot)
    yield from _gpus(snapshot, summary)
    yield from _workers(snapshot, summary)
    yield from _steals(summary)
    yield from _warnings(snapshot)
    yield "</body>\n</html>\n"


# ---- totals ----


def _heading(snapshot: Snapshot, summary: Summary, live_s: float | None) -> Iterator[str]:
    count = snapshot.count
    again = f"; loads itself again every {format.duration(live_s)}" if live_s else ""
    yield f"<h1>{escape(snapshot.pool)}</h1>\n"
    yield f"<p>{_when(snapshot, summary)}{again}</p>\n"
    tiles = [
        ("done", f"{count.done.claims:,} of {count.planned.claims:,}"),
        ("failed", f"{count.failed.claims:,}"),
        ("running", f"{count.running.claims:,}"),
        ("waiting", f"{count.waiting.claims:,}"),
        *((name, f"{amount.claims:,}") for name, amount in count.others.items()),
        ("progress by cost", format.share(snapshot.progress, 1.0)),
        ("attempts", f"{summary.attempts:,}"),
        ("stolen", f"{summary.steals.total():,}"),
        ("workers", f"{len(summary.lanes):,}"),
    ]
    gpus = _gpu_hours(snapshot, summary)
    if hours := sum(each.hours for each in gpus):
        tiles.append(("GPU hours at work", f"{hours:,.2f}"))
    if kwh := sum(each.kwh for each in gpus):
        tiles.append(("kWh of the GPUs", f"{kwh:,.3f}"))
    tiles += [
        (name, format.percent(percent, 0))
        for name, percent in (
            ("devices computing", snapshot.time_use.computing_percent),
            ("waiting for input", snapshot.time_use.feeding_percent),
            ("MFU", snapshot.time_use.mfu_percent),
        )
        if percent is not None
    ]
    tiles += [(name.replace("_", " "), f"{n:,}") for name, n in snapshot.counters.items() if n]
    if summary.last > summary.first:
        tiles.append(("took so far" if not snapshot.finished else "took", _took(summary)))
    if not snapshot.finished:
        tiles.append((f"{snapshot.unit}/s", format.rate(snapshot.items_per_s)))
        tiles.append(("ETA", format.duration(snapshot.eta_s)))
    tiles += [(name, f"{amount:,}") for name, amount in count.measures.items()]
    yield '<dl class="tiles">\n'
    for name, text in tiles:
        more = _range(snapshot) if name == "ETA" else ""
        size = ' class="long"' if len(text) > LONG else ""
        yield f"<div><dt>{escape(printable(name))}</dt><dd{size}>{escape(text)}</dd>{more}</div>\n"
    yield "</dl>\n"
    whole = max(1, count.planned.claims)
    parts = (("done", count.done), ("failed", count.failed), ("running", count.running))
    yield '<div class="bar">'
    for name, amount in parts:
        yield f'<i class="{name}" style="width:{100 * amount.claims / whole:.3f}%"></i>'
    yield "</div>\n"
    for alert in snapshot.warnings:
        yield f"<p>! {escape(alert.text)}</p>\n"


def _range(snapshot: Snapshot) -> str:
    if not snapshot.forecast.is_wide:
        return ""
    low, high = map(format.duration, (snapshot.eta_low_s, snapshot.eta_high_s))
    return f"<small>{low} to {high}</small>"


def _when(snapshot: Snapshot, summary: Summary) -> str:
    begun = f"begun {_local(summary.first)}, " if summary.last >= summary.first else ""
    state = "finished" if snapshot.finished else "not finished"
    return f"{begun}{state} as of {_local(snapshot.taken_at)}"


def _took(summary: Summary) -> str:
    return format.duration(summary.last - summary.first)


def _local(t: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(t))
    except (OverflowError, ValueError, OSError):
        return "?"


def _lanes(summary: Summary) -> Iterator[str]:
    yield "<h2>What each worker did</h2>\n"
    yield '<p class="legend">'
    for style, text in _legend(summary):
        yield f'<span><i class="{style}"></i>{text}</span>'
    yield "</p>\n"
    if summary.drawn is None:
        piece = format.duration(summary.slot_s * charts.slots_per_piece(summary))
        yield f"<p>Too many attempts to draw; shown is how busy each worker was, by {piece}.</p>\n"
    if len(summary.lanes) > charts.LANES_MAX:
        yield f"<p>The first {charts.LANES_MAX} of {len(summary.lanes):,} workers.</p>\n"
    yield '<div class="wide">'
    yield from charts.lanes(summary)
    yield "</div>\n"


def _legend(summary: Summary) -> Iterator[tuple[str, str]]:
    """Yield the styles that are drawn, and what each means."""
    named = {ending for ending, count in summary.endings.items() if count}
    if summary.drawn is None:
        for style, text in charts.LEGEND_OF_SLOTS.items():
            if style == "done" or named & BAD:
                yield style, text
        return
    for style, text in charts.LEGEND.items():
        if style.split()[0] in named and ("stolen" not in style or summary.steals):
            yield style, text


def _curves(pool: PoolDirectory, snapshot: Snapshot, summary: Summary) -> Iterator[str]:
    """Yield what gpu_metrics.log says, which `run` and `watch --metrics-only` keep."""
    history = read_metrics(metrics_path(pool))
    times = history.times()
    if len(times) < 2:
        return
    first, last = min(summary.first, times[0][0]), max(summary.last, times[-1][0])
    unit = escape(snapshot.unit)
    yield f'<h2>Speed, {unit} per second</h2>\n<div class="wide chart">'
    yield from charts.speed(history, first, last, snapshot.unit)
    yield "</div>\n"
    if any(slot.gpus for _, slot in times):
        yield '<h2>GPU use</h2>\n<p class="legend"><span><i class="done"></i>mean of the GPUs'
        yield '</span><span><i class="done faint"></i>from the least to the most used</span>'
        yield '<span><i class="stolen"></i>memory</span></p>\n<div class="wide chart">'
        yield from charts.gpu_use(history, first, last)
        yield "</div>\n"


# ---- tables ----


def _spools(snapshot: Snapshot) -> Iterator[str]:
    rows = [
        (
            row.name or "others",
            row.model or format.UNKNOWN,
            f"{row.weight:.2f}",
            f"{row.planned.claims:,}",
            f"{row.waiting.claims:,}",
            f"{row.done:,}",
            format.stolen(row.stolen_in, row.stolen_out),
            f"{row.errors:,}",
            row.state,
        )
        for row in snapshot.spools
    ]
    header = "spool GPU weight planned waiting done stolen errors state".split()
    yield from _table("Spools", header, rows)


def _gpu_hours(snapshot: Snapshot, summary: Summary) -> list[GpuHours]:
    return gpu_hours(snapshot.workers, {x.worker: x.busy_s for x in summary.lanes.values()})


def _gpus(snapshot: Snapshot, summary: Summary) -> Iterator[str]:
    rows = [
        (each.model, f"{each.workers:,}", f"{each.hours:,.2f}", f"{each.kwh:,.3f}" * (each.kwh > 0))
        for each in _gpu_hours(snapshot, summary)
    ]
    if rows:
        yield from _table("GPUs", ["model", "workers", "hours at work", "kWh"], rows, left=1)


def _workers(snapshot: Snapshot, summary: Summary) -> Iterator[str]:
    states = {row.id: row.state for row in snapshot.workers}
    uses = {row.id: row.time_use for row in snapshot.workers}
    reported = any(use != TimeUse() for use in uses.values())
    order = sorted(summary.lanes.values(), key=lambda lane: (lane.host, lane.worker))
    rows = []
    for lane in order[:ROWS_MAX]:
        ends = [lane.endings[ending] for ending in ENDINGS]
        span = lane.last - lane.first
        busy = format.share(lane.busy_s, span) if span > 0 else format.UNKNOWN
        rows.append((
            lane.worker,
            states.get(lane.worker, format.UNKNOWN),
            *(f"{number:,}" if number else "" for number in ends),
            f"{lane.stolen:,}" if lane.stolen else "",
            format.duration(lane.busy_s),
            busy,
            *(_time_use_cells(uses.get(lane.worker, TimeUse())) if reported else ()),
        ))  # fmt: skip
    header = ["worker", "state", *ENDINGS, "stolen", "at work", "busy"]
    if reported:
        header += ["computing", "waiting for input", "MFU", "GiB"]
    yield from _table(f"Workers ({len(order):,})", header, rows)


def _time_use_cells(use: TimeUse) -> list[str]:
    percents = use.computing_percent, use.feeding_percent, use.mfu_percent
    peak = "" if use.peak_gib is None else f"{use.peak_gib:.1f}"
    return [*("" if each is None else format.percent(each, 0) for each in percents), peak]


def _steals(summary: Summary) -> Iterator[str]:
    rows = [
        (spool, worker, f"{count:,}")
        for (spool, worker), count in summary.steals.most_common(STEALS_MAX)
    ]
    if rows:
        more = len(summary.steals) - len(rows)
        title = "Steals" + (
            f" (the most frequent {len(rows)} of {more + len(rows):,})" * (more > 0)
        )
        yield from _table(title, ["from spool", "by worker", "claims"], rows, left=2)


def _table(
    title: str, header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 2
) -> Iterator[str]:
    dense = ' class="dense"' if len(rows) > DENSE else ""
    yield f'<h2>{escape(title)}</h2>\n<div class="wide"><table{dense}>\n<tr>'
    styles = [' class="text"' if number < left else "" for number in range(len(header))]
    for style, name in zip(styles, header, strict=True):
        yield f"<th{style}>{escape(name)}</th>"
    yield "</tr>\n"
    for row in rows:
        cells = zip(styles, row, strict=True)
        yield f"<tr>{''.join(f'<td{style}>{escape(cell)}</td>' for style, cell in cells)}</tr>\n"
    yield "</table></div>\n"


def _warnings(snapshot: Snapshot) -> Iterator[str]:
    """Yield what needs attention: the warnings of `fsqueue status`."""
    if snapshot.warnings:
        yield "<h2>Needs attention</h2>\n<ul>\n"
        for alert in snapshot.warnings:
            yield f"<li>{escape(printable(alert.text, 500))}</li>\n"
        yield "</ul>\n"


def _failures(pool: PoolDirectory, snapshot: Snapshot) -> Iterator[str]:
    """Yield the claims that failed for good, with the last lines of their last attempts."""
    failed = snapshot.count.failed.claims
    if not failed:
        return
    yield f'<h2>Failed ({failed:,})</h2>\n<div class="wide">\n'
    names = sorted(claims.owned(pool, State.FAILED), key=lambda name: name.id)
    for name in islice(names, FAILURES_MAX):
        record = _record(pool, name.id, name.attempt)
        about = f"{format.plural(name.attempt + 1, 'attempt')}, last by {name.owner}"
        said = printable(record.get("error") or "no reason was recorded", 500)
        tail = str(record.get("detail") or "").splitlines()[-LINES_MAX:]
        lines = "\n".join(printable(line, 500) for line in tail)
        yield f"<details><summary><b>{escape(name.id)}</b>: {escape(said)} "
        yield f"<small>({escape(about)})</small></summary>"
        yield f"<pre>{escape(lines)}</pre></details>\n"
    if failed > FAILURES_MAX:
        yield f"<p>... and {failed - FAILURES_MAX:,} more: fsqueue failed POOL</p>\n"
    yield "</div>\n"


def _record(pool: PoolDirectory, id: str, attempt: int) -> dict[str, object]:
    try:
        return read_json(pool.error(id, attempt), patience_s=0.0)
    except (OSError, FsqueueError) as error:
        return {"error": f"its record cannot be read: {error}"}
