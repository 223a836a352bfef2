"""Everything around the network, as a ratio to the bare engine call."""
