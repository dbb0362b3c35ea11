"""What workers write down in a pool: no claim moves because of it.

`journal` is what happened, `status` what a worker is and does and how fast it is, and `checksums`
the size, checksum and provenance of every output.
"""
