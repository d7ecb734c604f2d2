"""A language model grades answers: its questions, its replies, its verdicts, and how far it can be trusted."""
