"""A dataset -> batches."""
