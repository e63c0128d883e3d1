"""The progress of a preparation.

In: a dataset folder, finished or not. Out: a table, report.html and report.json.
"""
