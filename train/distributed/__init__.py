"""Distributed training.

In: the environment that torchrun, srun or the DeepSpeed launcher sets. Out: a process group, launched ranks, stop requests.
"""
