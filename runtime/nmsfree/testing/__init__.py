"""Fakes of TensorRT and CUDA, to test an application without a GPU."""
