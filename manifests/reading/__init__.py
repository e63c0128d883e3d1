"""Shards read back.

In: a dataset folder or its URL. Out: samples, as bytes and arrays.
"""
