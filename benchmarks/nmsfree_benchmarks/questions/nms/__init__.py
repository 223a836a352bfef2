"""What does NMS cost?"""
