"""What every benchmark leaves behind: records, ratios with intervals, verdict, file, comparison."""
