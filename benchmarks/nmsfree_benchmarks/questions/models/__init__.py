"""How fast is each detector, with NMS and without, and how right?"""
