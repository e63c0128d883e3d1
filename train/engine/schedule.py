"""Learning-rate schedule."""

import math


def learning_rate(step: int, base: float, warmup_steps: float, total_steps: int) -> float:
    """Linear warm-up, then half a cosine down to zero, as in the official code.

    Args:
        step: steps before this one; with a warm-up, the rate of step 0 is 0.
        base: peak rate.
        warmup_steps: length of the warm-up; may be fractional.
        total_steps: steps of the whole run.
    """
    warmup = min(step / warmup_steps, 1.0) if warmup_steps else 1.0
    done = max(step - warmup_steps, 0.0) / max(total_steps - int(warmup_steps), 1)
    return base * warmup * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
