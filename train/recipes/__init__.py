"""Recipes: the model, its inputs and its training.

In: a TOML file and --set options. Out: a validated recipe.
"""
