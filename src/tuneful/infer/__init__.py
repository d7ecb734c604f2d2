"""A model answers: prompts become text."""
