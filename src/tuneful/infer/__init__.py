"""Weights speak: sample and generate."""
