"""What does the criterion cost beside the network?"""
