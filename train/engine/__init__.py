"""One training step.

In: a model and a batch. Out: loss and updated weights, with plain torch or DeepSpeed.
"""
