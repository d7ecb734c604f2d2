"""Records become examples: token ids and weights."""
