"""SLURM: a worker's allocation, arrays of workers, and what became of a job.

Everything works without SLURM: this package does nothing where its commands are absent.
"""
