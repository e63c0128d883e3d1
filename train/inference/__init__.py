"""Inference on media files.

In: a model folder and media files. Out: labels with probabilities, and attention maps.
"""
