"""Checkpoint → certified NMS-free ONNX."""
