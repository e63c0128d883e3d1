"""The contracts: what a clip, a label set and a shard are.

In: nothing from the other folders. Out: the tables, files and errors that all of them use.
"""
