"""What `nmsfree bench` asks, a file for each question."""
