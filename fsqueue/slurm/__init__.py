"""SLURM: what a worker knows of its allocation, arrays of workers, and what became of a job.

Everything works without SLURM; this package is asked only where its commands or variables exist.
"""
