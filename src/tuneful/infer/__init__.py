"""Generation: sampling, decoding, answers as text and as files."""
