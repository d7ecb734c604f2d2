"""Answers are weighed: metrics, and whether a difference is real."""
