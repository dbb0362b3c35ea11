"""Draw a pool in a terminal: the only door to rich.

`board` decides what is said, `draw` makes it a frame, `live` keeps the frame fresh and obeys keys,
`background` does so from a thread. A frame is a pure function of a snapshot, a view and a size.
Text from the pool is shown, never obeyed: it arrives printable (`status.printable`), and nothing
here reads it as markup.
"""

from __future__ import annotations

from fsqueue.dashboard.background import LoadBalancingDashboard
from fsqueue.dashboard.board import View
from fsqueue.dashboard.draw import render
from fsqueue.dashboard.live import in_notebook, print_once, show

__all__ = ["LoadBalancingDashboard", "View", "in_notebook", "print_once", "render", "show"]
