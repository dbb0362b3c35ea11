"""Batches on a device: tokenise, batch, run, check, and put every row in its place.

`engine` runs batches; `tokenizing` and `batching` prepare them, `non_finite` repeats in float32
what overflowed, `assembly` orders the rows; `model_cache` keeps models loaded, `self_test` checks a
device and `calibrate` measures it.
"""
