"""Which clips a dataset has.

In: official lists and your own CSV files. Out: clip tables and label sets.
"""
