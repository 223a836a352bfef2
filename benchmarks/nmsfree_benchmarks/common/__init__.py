"""What the benchmarks share: pictures, models, exported files, options, tables."""
