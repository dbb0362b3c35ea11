"""Any other encoder that transformers has: its shape, its tokens, and its network."""
