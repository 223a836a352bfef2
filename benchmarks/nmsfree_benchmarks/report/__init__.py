"""One page for people who were not there, and the comparison of two result files."""
