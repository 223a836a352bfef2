"""Train FCOS detectors that need no non-maximum suppression."""
