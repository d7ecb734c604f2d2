"""Examples become batches."""
