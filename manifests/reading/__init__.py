"""Readers of shards.

In: a dataset folder or its URL. Out: samples as bytes and arrays.
"""
