"""Running work side by side.

In: tasks. Out: their results, from local processes or a Ray cluster, and a clean stop on Ctrl-C.
"""
