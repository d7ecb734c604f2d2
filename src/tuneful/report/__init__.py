"""A run becomes one page."""
