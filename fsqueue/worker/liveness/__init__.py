"""How a worker shows that it is alive, and how it is ended when it no longer gets on.

`guardian` is the process that renews the lease, `progress` what it shares with the worker, and
`heartbeat` the thread that writes the status.
"""
