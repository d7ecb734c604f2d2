"""Trained weights are written for others."""
