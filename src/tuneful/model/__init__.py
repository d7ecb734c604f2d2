"""Weights come and go: load, attend, export."""
