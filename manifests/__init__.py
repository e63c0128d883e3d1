"""The contracts: what a clip, a label set and a shard are.

In: nothing of ours. Out: the tables, files and errors that every other folder speaks in.
"""
