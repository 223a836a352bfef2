"""What every question shares: timing, statistics, records, tables, publishing."""
