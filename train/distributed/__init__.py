"""Several processes.

In: what torchrun, srun or DeepSpeed set. Out: a process group, launched ranks, and stop requests by signal.
"""
