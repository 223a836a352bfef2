"""Detection datasets: reading COCO folders, and the digits scenes that need no download."""
