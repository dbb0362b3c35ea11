"""DNABERT-2 and DNABERT-S: their shape, their tokens, and their network on packed batches."""
