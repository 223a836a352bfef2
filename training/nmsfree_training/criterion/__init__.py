"""Label assignment and losses."""
