"""Weights are loaded and computed with."""
