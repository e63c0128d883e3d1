"""One training step.

In: a model and a batch. Out: losses and updated weights, by plain torch or DeepSpeed.
"""
