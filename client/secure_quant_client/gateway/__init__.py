"""A gateway: plain Open Inference Protocol v2 in front, our protocols to the servers behind.

It belongs to the user's side: inputs and answers are in the clear in it and before it.
"""
