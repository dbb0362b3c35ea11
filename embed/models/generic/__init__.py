"""Any other encoder that transformers has: its shape, its tokenizer, and its network."""
