"""Packing.

In: raw clips. Out: finished shards, their indices and dataset.json.
"""
