"""Models: find them, pin their files, and load and run the encoders.

`published` finds a model's files; `families` lists the three kinds of models, `esm2`, `dnabert` and
`generic`, each with its network, its tokenizer and, where needed, its shape. `packed` is what every
network runs on. `conventions` says what users mean by a model's embedding, and makes it; `scores`
are what a masked-LM head says of a sequence.

`windows` divides what is too long, `encode_many` tokenizes on several cores, `cost` estimates how
long all that takes, and `precision` chooses the type of the numbers. Planning imports only what
needs no torch.
"""
