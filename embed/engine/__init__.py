"""Batches on a device: tokenize, batch, run, check, and put every row in its place.

`device` says what the engine needs of a device, `cuda` is a GPU, and `device_errors` knows what its
errors mean. `engine` runs batches, as many together as `budget` finds to pay, and
`remembered_budget` keeps for the next process; `sequence_reader` and `batching` prepare them,
`float32_fallback` repeats in float32 what overflowed, `assembly` puts the rows in order;
`model_cache` keeps models loaded, and `self_test` checks that a device and a loaded model compute
correctly.
"""
