"""What the kernel says about processes, and how everything that a program started is ended.

In reading order: `table` (what /proc shows), `orphans` (whose children we become), `program` (one
started program and its descendants), `leftovers` (what a dead worker left behind), `temporary`
(a program's temporary directory), `standard_streams`.

What these modules do not know: claims and pools. They import only the standard library, because the
process that tidies up after a dead worker has to be small.
"""
