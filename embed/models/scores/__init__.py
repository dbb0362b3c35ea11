"""Scores of sequences, by a model's masked-LM head: `masked_lm` finds it, `masked_head` runs it."""
