"""ESM-2: its tokens by table, and its network on packed batches."""
