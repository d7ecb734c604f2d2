"""Records are examined: numbers and findings."""
