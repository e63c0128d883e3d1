"""Where a model comes from and how it is stored.

In: a recipe's initial weights, a released checkpoint, a model folder. Out: an MBT and what its inputs are.
"""
