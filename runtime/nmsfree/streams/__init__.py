"""Pictures and videos in, results out."""
