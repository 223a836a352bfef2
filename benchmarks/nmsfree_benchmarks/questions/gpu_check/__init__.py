"""Does this GPU do what is said of GPUs?"""
