"""Weights of others.

In: ViT and Scenic checkpoint files. Out: tensors by our parameter names.
"""
