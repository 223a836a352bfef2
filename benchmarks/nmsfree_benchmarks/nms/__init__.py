"""The price of NMS: alone, and as part of a call."""
