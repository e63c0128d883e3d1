"""Creating, importing, saving and loading models.

In: initial weights of a recipe, a released checkpoint, or a model folder. Out: an MBT and a description of its inputs.
"""
