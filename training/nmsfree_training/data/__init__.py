"""Dataset → augmented batches."""
