"""Outputs: what a claim writes, and tables of many outputs merged and exported as files.

`claim_file` is one claim's output; `table` reads many as one; `collect` finds a pool's outputs,
`pairing` joins two models by id, `merge` writes them with `formats` or `virnucpro`. `whole_files`
makes a file appear whole or not at all.
"""
