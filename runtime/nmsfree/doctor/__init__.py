"""Which engines run on this machine, and what is missing."""
