"""Answers are measured and compared."""
