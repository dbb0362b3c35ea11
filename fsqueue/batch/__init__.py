"""Other batch systems than SLURM: scripts that start workers there, and how long a job has left.

Read `systems` first, then `scripts`. Nothing here submits anything or knows what a claim is.
"""
