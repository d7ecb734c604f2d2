"""A language model makes records: instructions, answers, better records, pairs; every request ends used or refused."""
