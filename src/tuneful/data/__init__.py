"""Files become records: read and divided."""
