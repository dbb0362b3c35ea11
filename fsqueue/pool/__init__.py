"""What a pool is on disk, and every transition of a claim.

Reading order: `names` and `layout` define the format, `settings` opens a pool, `claims` moves
claims (the invariants are at its head), `leases` tells a dead worker from a slow one,
`proof_of_life` what one host knows of its processes, `plans` publishes plans, `inbox` holds claims
addressed to one worker. `requirements` parses what a claim's kind requires of a worker. `reader`
reads finished pools, `completeness` looks for every planned claim, `reckoning` counts without
looking, and `overwriting` decides which files a command may write.

This package does not know what a GPU is, nor which worker should do what.
"""
