"""One process's life: take a claim, run it, publish, finish; recover what dead workers held; leave.

`worker` is the loop. `claim_source` finds the next claim, `attempts` runs it once, `handler_cache`
keeps handlers loaded, `liveness` renews the lease and writes the status, `recovery` puts dead
workers' claims back, and `backoff` limits how often the file server is asked. `shutdown` decides
when to leave before the end, `ending` whether the end has come.

`launch` starts a worker in this process from its options: `spool_choice` picks its spool,
`settings` is what was decided. `local_workers` starts worker processes on this machine.
"""
