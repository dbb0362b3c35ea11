"""Run a Python function, or a Handler class, from a file of the user's."""
