"""What is trained, and how.

In: a TOML file and --set options. Out: a validated recipe.
"""
