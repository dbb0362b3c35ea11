"""What users mean by a model's embedding: which layers, which tokens, and what follows.

`practice` decides it from a model's files (`modules_json`) and the options, and `convention` is
what was decided. `pooling` makes vectors of states, and `head` is what follows pooling.
"""
