"""Sampling of clips, views and augmentation for each step.

In: seed, epoch and step. Out: rows of the index, windows in time, crops and mixup weights, as NumPy arrays.
"""
