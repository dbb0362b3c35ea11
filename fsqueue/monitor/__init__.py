"""Read-only views of a pool: counts, workers, spools, alerts, attempts, metrics, reports.

`snapshot` combines them into one frozen picture. Nothing here writes to the pool's claims, and no
decision of a worker depends on it.
"""
