"""A language model grades answers."""
