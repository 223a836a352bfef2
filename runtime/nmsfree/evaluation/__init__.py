"""What results of a detector say: AP, thresholds, duplicates, calibration, and their pictures."""
