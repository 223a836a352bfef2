"""Does the time of a call depend on what is in the picture?"""
