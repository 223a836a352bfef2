"""Batches and parallel streams until nothing more is gained."""
