"""C for what a CPU computes between matrix products; torch's own operations do the same where it cannot be compiled."""
