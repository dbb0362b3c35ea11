"""What a pool is on disk, and every transition of a claim.

Reading order: `names` and `layout` define the format, `settings` opens a pool, `claims` moves
claims (the invariants are at its head), `leases` tells a dead worker from a slow one, `plans`
publishes what was planned, `inbox` holds claims addressed to one worker. `requirements` reads what
a claim's kind asks of a worker. `status` and `journal` are what workers report about themselves;
`reader` is how finished pools are read. This package does not know what a GPU is, nor who should
do what.
"""
