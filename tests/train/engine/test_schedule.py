"""The learning-rate schedule, against hand-computed values and the official implementation's output."""

import math

import numpy as np
import pytest

from mbt.train.engine.schedule import learning_rate
from tests.golden import Golden


def test_points_on_the_curve() -> None:
    rates = [learning_rate(step, base=2.0, warmup_steps=10, total_steps=110) for step in (0, 5, 10, 60, 110)]
    np.testing.assert_allclose(rates, [0, 1, 2, 1, 0], atol=1e-12)


def test_without_warmup_it_starts_at_the_base() -> None:
    assert learning_rate(0, 0.5, 0, 100) == 0.5
    assert learning_rate(25, 0.5, 0, 100) == pytest.approx(0.25 * (1 + math.cos(math.pi / 4)))


def test_equals_the_official_schedule() -> None:
    golden = Golden("lr_schedule").arrays
    steps = golden["official_steps"]
    inside = steps < 15900
    ours = [learning_rate(int(step), 0.5, 795.0, 15900) for step in steps[inside]]
    np.testing.assert_allclose(ours, golden["official_lr"][inside], rtol=1e-6, atol=5e-8)
