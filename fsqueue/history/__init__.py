"""What happened in a pool: attempts, failures, and the reports made of them.

`attempts` reads the workers' journals, `failures` the error records; `summary` adds attempts up,
`charts` and `report` show them on an HTML page, `trace` writes them for Perfetto. All of it is read
only, and a hint (I8) except for the failed claims themselves.
"""
