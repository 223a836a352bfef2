"""Checking a dataset before training, and writing a repaired copy."""
