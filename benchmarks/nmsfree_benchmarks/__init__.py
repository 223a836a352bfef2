"""Measure NMS-free detectors against NMS."""
