"""The command line of training: one file per command."""
