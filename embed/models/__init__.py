"""Models: find them, pin their files, and load and run the encoders.

`hub` finds a model's files and `files` inspects them; `families` knows which of the three kinds a
model is; `esm2`, `dnabert` and `generic` are those kinds, each with its network, its tokens and,
where needed, its shape. Planning imports only what needs no torch.
"""
