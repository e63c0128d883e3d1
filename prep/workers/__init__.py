"""Parallel work.

In: tasks. Out: their results, from local processes or a Ray cluster, with a clean stop on Ctrl-C.
"""
