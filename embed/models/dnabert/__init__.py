"""DNABERT-2 and DNABERT-S: their shape, their tokenizer, and their network on packed batches."""
