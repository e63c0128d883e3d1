"""A pilot: a small real run of the pipeline that shows what a long one would take from here.

In: a number of clips, and where to fetch them. Out: a dataset folder with pilot.html and pilot.json, to attach to a bug report.
"""
