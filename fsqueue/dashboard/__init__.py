"""A pool drawn on a terminal or in a notebook: the only door to rich.

`board` decides what is shown, `draw` makes a frame of it, `live` keeps the frame up to date and
reacts to keys, `background` does the same from a thread. A frame is a pure function of a snapshot,
a view and a size. Text from the pool is never interpreted: it arrives printable, and nothing here
treats it as markup.
"""

from __future__ import annotations

from fsqueue.dashboard.background import LoadBalancingDashboard
from fsqueue.dashboard.board import View
from fsqueue.dashboard.draw import render
from fsqueue.dashboard.live import in_notebook, print_once, show

__all__ = ["LoadBalancingDashboard", "View", "in_notebook", "print_once", "render", "show"]
