"""Adopting detectors of other projects: recognised, rewritten into the contract, compared."""
