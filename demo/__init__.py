"""A rendered dataset, and the demonstration on it.

In: a seed. Out: clips with labels, four trained models, and a page that compares them.
"""
