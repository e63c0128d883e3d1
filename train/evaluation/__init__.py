"""Scores.

In: a model and shards. Out: metrics over temporal views, tables, figures.
"""
