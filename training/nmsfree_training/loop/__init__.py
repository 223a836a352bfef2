"""The training loop: steps, checkpoints, resuming, several processes."""
