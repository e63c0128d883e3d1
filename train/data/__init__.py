"""Batches.

In: shards and the plan of each step. Out: decoded, augmented batches on the device.
"""
