"""Scenes of any number of objects, and what is timed on them."""
