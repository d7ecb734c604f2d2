"""A model answers to others' clients, and people compare and rate it in a browser."""
