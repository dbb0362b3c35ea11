"""Send work to every capable worker: one copy of a claim in each worker's inbox.

`broadcast` addresses the copies and collects their results; `jobs` has the built-in jobs (warmup,
selftest, evict, drain). Workers run the copies, not this package.
"""
