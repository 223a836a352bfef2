"""How far from the limit of the device a model is."""
