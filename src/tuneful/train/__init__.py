"""Weights change: loss, optimizer, loop."""
