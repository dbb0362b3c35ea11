"""Keep a pool healthy: audit it, clean up after killed processes, test its file system."""
