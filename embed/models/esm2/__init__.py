"""ESM-2: its tokenizer, a table, and its network on packed batches."""
