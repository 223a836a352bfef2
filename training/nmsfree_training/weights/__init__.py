"""Files of weights: reading, writing, downloading, describing."""
