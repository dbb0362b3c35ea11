"""Packed batches, which every encoder runs on: sequences end to end, no padding between them.

Linear maps and norms (`products`) see the pack as one long matrix; attention stays inside each
sequence. `layout` says where everything of a batch is, and `pack` is a batch on a device. `kernels`
calls the kernels of attention, and `attention` runs the one that a layout is made for. `encoder` is
what every loaded model is, `states` collects its layers' states, and with `streamed` a model stays
in host memory while its layers visit a device one by one.

What this package does not know: names of weights, and tokens.
"""
