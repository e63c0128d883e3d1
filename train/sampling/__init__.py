"""What each step sees.

In: seed, epoch and step. Out: rows of the index, windows in time, crops and mixing weights, as NumPy arrays.
"""
