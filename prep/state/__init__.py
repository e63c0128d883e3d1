"""What is on disk between the stages.

In: results of fetching and packing. Out: the ledger, shard records and settings that a later run resumes from.
"""
