"""Folders that another host takes as they are: a model with its configuration and labels."""
