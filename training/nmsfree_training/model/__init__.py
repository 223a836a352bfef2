"""The network: backbone, neck, head, duplicate filter."""
