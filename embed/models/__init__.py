"""Models: find them, pin their files, and load and run the encoders.

`hub` finds a model's files and `files` inspects them; `families` lists the three kinds of models:
`esm2`, `dnabert` and `generic`, each with its network, its tokenizer and, where needed, its shape.
`packed` is what the first two networks are built on, and `windows` divides what is too long. With
`streamed`, a model stays in host memory and its layers visit a device one by one.

A `convention` is what users mean by a model's embedding; `practice` decides it, with what
`modules_json` reads of a sentence-transformers folder. `states` collects the layers' states,
`pooling` makes vectors of them, and `head` is what follows. `cost` estimates how long all that
takes. Planning imports only what needs no torch.
"""
