"""Media in, shards out.

In: a clip table and a source of media. Out: a dataset folder; run.py runs the stages in order.
"""
