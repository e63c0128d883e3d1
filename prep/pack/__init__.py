"""Packing.

In: raw clips. Out: finished shards, their index and dataset.json.
"""
