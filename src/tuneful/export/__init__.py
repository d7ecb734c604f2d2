"""Trained weights leave."""
