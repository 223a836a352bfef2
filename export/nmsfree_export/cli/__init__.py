"""The command line of export: one file per command."""
