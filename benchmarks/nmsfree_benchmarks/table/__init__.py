"""The table of `nmsfree bench`: every model in every engine, timed in turn."""
