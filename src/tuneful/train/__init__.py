"""Weights are trained: loss, optimizer, loop."""
