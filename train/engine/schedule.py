"""Learning-rate schedule."""

import math


def learning_rate(step: int, base: float, warmup_steps: float, total_steps: int) -> float:
    """Linear warm-up, then half a cosine to zero, as in the official code.

    Args:
        step: updates made so far; the first update is made with the rate of step 0, which is 0 where there is a warm-up.
        base: peak rate.
        warmup_steps: length of the warm-up; need not be whole.
        total_steps: updates of the whole training.
    """
    warmup = min(step / warmup_steps, 1.0) if warmup_steps else 1.0
    done = max(step - warmup_steps, 0.0) / max(total_steps - int(warmup_steps), 1)
    return base * warmup * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
