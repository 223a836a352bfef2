"""ONNX Runtime on processors and GPUs."""
