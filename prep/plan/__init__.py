"""What to prepare.

In: a clip table and options. Out: the plan (clips.parquet) and what it will cost.
"""
