"""TensorRT and TensorRT-RTX: engine files, what runs them, what loading checks."""
