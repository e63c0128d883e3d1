"""Downloading.

In: the plan and a source. Out: raw clips, and the ledger with the result of each request.
"""
