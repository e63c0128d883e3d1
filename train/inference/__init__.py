"""Answers on media files.

In: a model folder and a video. Out: labels with probabilities, and attention maps.
"""
