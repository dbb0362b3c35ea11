"""Models: find them, pin their files, and load and run the encoders.

`hub` finds a model's files and `files` inspects them; `families` lists the three kinds of models:
`esm2`, `dnabert` and `generic`, each with its network, its tokenizer and, where needed, its shape.
`packed` is what the first two networks are built on, `pooling` makes one vector of a sequence's
states, and `cost` estimates how long all that takes. Planning imports only what needs no torch.
"""
