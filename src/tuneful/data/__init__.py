"""Text becomes batches: read, split, render, encode, lay out."""
