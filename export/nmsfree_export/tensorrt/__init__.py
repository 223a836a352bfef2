"""ONNX file → TensorRT engine."""
