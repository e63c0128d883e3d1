"""Lists of the clips of a dataset.

In: official lists and your own CSV files. Out: clip tables and label sets.
"""
