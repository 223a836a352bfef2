"""The cost of training: loading, a step, the criterion."""
