"""AP against latency: precision, engine, input size, model."""
