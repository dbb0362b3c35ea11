"""Work addressed to every capable worker: one copy of a claim in each worker's inbox.

`jobs` holds the built-in jobs (warmup, selftest, evict, drain); `broadcast` addresses the copies
and collects their results. Workers, not this package, run them.
"""
