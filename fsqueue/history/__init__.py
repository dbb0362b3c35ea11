"""What happened in a pool: attempts, failures, what made each output, and reports of it all.

`attempts` reads the workers' journals, `failures` the error records, `provenance` what workers
recorded with their outputs; `outputs` lists those with their inputs, `select` chooses claims;
`summary` adds attempts up, `charts` and `report` show them on an HTML page, `trace` writes them for
Perfetto. All of it is read only, and a hint (I8) except for the failed claims and for the outputs.
"""
