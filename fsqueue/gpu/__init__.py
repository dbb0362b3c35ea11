"""Which GPUs are here, how fast each model is, and how busy they are.

This package knows nothing about pools.
"""
