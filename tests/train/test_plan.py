"""The plan: a pure function of seed and step."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from train.plan import StepPlan, TrainPlan


@given(st.integers(8, 60), st.integers(1, 8), st.integers(0, 1000))
def test_an_epoch_has_no_sample_twice(samples: int, batch: int, seed: int) -> None:
    plan = TrainPlan(seed, samples, batch)
    rows = np.concatenate([plan.step(step).rows for step in range(plan.steps_per_epoch)])
    assert len(set(rows.tolist())) == len(rows) == samples // batch * batch
    assert set(rows.tolist()) <= set(range(samples))


def test_epochs_and_seeds_differ() -> None:
    orders = {tuple(TrainPlan(seed, 50, 50).step(step).rows) for seed in (0, 1) for step in (0, 1, 2)}
    assert len(orders) == 6


def test_a_step_does_not_depend_on_the_steps_asked_before() -> None:
    plan = TrainPlan(3, 20, 4)
    for step in range(12):
        plan.step(step)
    for a, b in zip(vars(plan.step(7)).values(), vars(TrainPlan(3, 20, 4).step(7)).values(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_ranks_share_the_global_batch() -> None:
    whole = TrainPlan(0, 100, 12).step(5)
    parts: list[StepPlan] = [whole.for_rank(rank, 4) for rank in range(4)]
    for name in vars(whole):
        np.testing.assert_array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(whole, name))


def test_fewer_samples_than_a_batch_fill_it() -> None:
    plan = TrainPlan(0, 3, 8)
    assert plan.steps_per_epoch == 1
    assert sorted(np.bincount(plan.step(0).rows).tolist()) == [2, 3, 3]


def test_draws_are_uniform_and_flips_even() -> None:
    plan = TrainPlan(0, 64, 64)
    steps = [plan.step(step) for step in range(200)]
    for name in ("start", "crop_x", "crop_y"):
        values = np.concatenate([getattr(step, name) for step in steps])
        histogram, _ = np.histogram(values, bins=10, range=(0, 1))
        assert histogram.sum() == len(values)
        assert abs(histogram / len(values) - 0.1).max() < 0.015
    assert abs(np.concatenate([step.flip for step in steps]).mean() - 0.5) < 0.02
