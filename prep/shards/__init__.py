"""Working with finished shards.

In: a dataset folder. Out: faults, statistics, contact sheets, rewritten shards.
"""
