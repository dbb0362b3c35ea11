"""Models as they are published: `hub` finds one and pins its bytes, `files` inspects them.

`names` are aliases. An `adapter` changes a model; `merge_adapter` merges the two in memory.
"""
