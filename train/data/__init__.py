"""Batches.

In: shards and the plan of a step. Out: decoded, augmented tensors on the device.
"""
