"""The graph of an exported file: how it is made, and its layers."""
