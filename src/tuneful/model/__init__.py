"""Models: loading, attention over tries, adapters, quantization, compiled kernels."""
