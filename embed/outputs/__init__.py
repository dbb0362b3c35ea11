"""Outputs: the file that a claim writes, and tables of many of them, merged into one.

`claim_file` is one claim's output; `table` reads many as one; `collect` finds a pool's outputs,
`pairing` joins two models by id, and `merge` writes them with `formats` or `virnucpro`.
`atomic_write` makes a file appear whole or not at all.
"""
