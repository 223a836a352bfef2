"""TensorRT engines: the two vendor modules, the sidecar of an engine, what loading checks."""
