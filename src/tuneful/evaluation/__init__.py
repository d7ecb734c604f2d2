"""Answers are measured by metrics and compared, with intervals and tests."""
