"""The only code that touches the shared disk: files, directories, locks, mounts, permissions.

This package knows which operations are safe on every file system, and nothing about pools. Handlers
may use `atomic` and `directories` for files of their own on a shared file system. `untrusted`
parses what other processes wrote there, and `name_sets` holds the names of a directory of millions.
"""
