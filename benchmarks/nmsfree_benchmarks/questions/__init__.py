"""What `nmsfree bench` asks: a file, or a folder with a `question.py`, for each sub-command."""
