"""One process's life: take a claim, run it, publish, finish; recover what dead workers held; leave.

`worker` is the loop. `claim_source` finds the next claim, `attempt` runs it once, `handler_cache`
keeps handlers loaded, `heartbeat` renews the lease, `recovery` returns dead workers' claims,
`backoff` limits how often the file server is asked, `shutdown` decides when to leave, `settings`
is what the command line chose, and `spool_choice` picks the worker's own spool.
"""
