"""What a run shows while it goes on: console, TensorBoard, curves, pictures."""
