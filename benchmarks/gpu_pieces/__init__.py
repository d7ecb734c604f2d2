"""The pieces of `benchmarks/gpu.py`: attention beside float64, steps of known shapes, and the same steps of others."""

from gpu_pieces.attention import attention_pieces
from gpu_pieces.peers import peer_pieces
from gpu_pieces.place import Piece, Place, facts
from gpu_pieces.steps import step_pieces

__all__ = ["Piece", "Place", "attention_pieces", "facts", "peer_pieces", "step_pieces"]
