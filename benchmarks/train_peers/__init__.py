"""The systems that `benchmarks/train.py` and `lora.py` compare, each a program of its own, and what they share.

`driver` takes a work from `bench` (what is trained on) through `gate` (is it the same computation?) and `rounds` (who
takes how long?) to its table. `worker` is the protocol between driver and system, `works` makes the batches, `adapter` the
adapter that all start from, `roofline` counts and measures what no exact system can do without. Run a system by
hand from `benchmarks/` with `python -m train_peers.chapter --job JOB.json`.
"""
