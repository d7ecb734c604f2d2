"""Runs of a grid: one is chosen by validation loss, and only that one is measured on the test set; or a learning curve."""
