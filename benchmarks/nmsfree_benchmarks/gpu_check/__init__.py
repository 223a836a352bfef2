"""What is claimed of GPUs, tried on the user's own."""
