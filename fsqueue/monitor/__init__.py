"""Read-only views of a pool as it is now: counts, workers, spools, alerts.

`snapshot` combines them into one frozen picture. Nothing here writes to the pool's claims, and no
decision of a worker depends on it.
"""
