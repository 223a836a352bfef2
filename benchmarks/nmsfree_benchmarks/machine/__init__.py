"""The machine: its clock, load, memory, GPU, and description."""
