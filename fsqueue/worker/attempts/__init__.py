"""One run of one claim, and what its ending means.

`attempt` runs a claim once. `verdicts` says what each ending means for the claim, for the worker
and for its GPU. After several failures in a row, `suspicion` asks whether the worker is to blame,
and `probe` finds out. `path_map` finds the inputs on this host, `patience` bears with a mount in
trouble, and `provenance` is what an output was made on.
"""
