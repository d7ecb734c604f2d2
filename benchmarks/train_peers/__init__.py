"""The systems that `benchmarks/train.py` compares, each a program of its own, and what they share.

`worker` is the protocol between driver and system, `works` makes the batches, `roofline` counts and measures what no
exact system can do without. Run a system by hand from `benchmarks/` with `python -m train_peers.chapter --job
JOB.json`.
"""
