"""Scenes of real handwritten digits: a dataset that is made, not downloaded."""
