"""Who should do what: planning inputs into claims, and the policy as pure functions.

`inputs`, `gpu_spec`, `backlog` and `planner` run once per plan; `choose`, `waiting` and `peers` are
what a worker asks before it takes a claim; `score` ranks workers for addressed work. Nothing here
takes a claim.
"""
