"""Shards in, trained models and answers out.

In: a dataset folder or URL and a recipe. Out: a run directory; trainer.py is the training loop.
"""
