"""Pretrained weights of other projects.

In: ViT and Scenic checkpoint files. Out: tensors under our parameter names.
"""
