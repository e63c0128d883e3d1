"""The training plan, a pure function of seed and step."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mbt.train.sampling.order import Drawn, balanced_shares
from mbt.train.sampling.plan import UNCOLORED, Jitter, StepPlan, TrainPlan


@given(st.integers(8, 60), st.integers(1, 8), st.integers(0, 1000))
def test_an_epoch_draws_each_sample_at_most_once(samples: int, batch: int, seed: int) -> None:
    plan = TrainPlan(seed, samples, batch)
    rows = np.concatenate([plan.step(step).rows for step in range(plan.steps_per_epoch)])
    assert len(set(rows.tolist())) == len(rows) == samples // batch * batch
    assert set(rows.tolist()) <= set(range(samples))


def test_epochs_and_seeds_differ() -> None:
    orders = {tuple(TrainPlan(seed, 50, 50).step(step).rows) for seed in (0, 1) for step in (0, 1, 2)}
    assert len(orders) == 6


def test_a_step_does_not_depend_on_earlier_calls() -> None:
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


def test_fewer_samples_than_a_batch_are_repeated_to_fill_it() -> None:
    plan = TrainPlan(0, 3, 8)
    assert plan.steps_per_epoch == 1
    assert sorted(np.bincount(plan.step(0).rows).tolist()) == [2, 3, 3]


def test_draws_are_uniform_and_half_of_the_views_are_flipped() -> None:
    plan = TrainPlan(0, 64, 64)
    steps = [plan.step(step) for step in range(200)]
    for name in ("start", "crop_x", "crop_y"):
        values = np.concatenate([getattr(step, name) for step in steps]).ravel()
        histogram, _ = np.histogram(values, bins=10, range=(0, 1))
        assert histogram.sum() == len(values)
        assert abs(histogram / len(values) - 0.1).max() < 0.015
    assert abs(np.concatenate([step.flip for step in steps]).mean() - 0.5) < 0.02


def steps_of(jitter: Jitter) -> StepPlan:
    """The concatenated draws of 200 steps."""
    plans = [vars(TrainPlan(0, 64, 64, None, jitter).step(step)) for step in range(200)]
    return StepPlan(**{name: np.concatenate([plan[name] for plan in plans]) for name in plans[0]})


def test_without_jitter_nothing_changes() -> None:
    plan = steps_of(Jitter(flip=False))
    assert not plan.flip.any()
    assert not plan.gray.any()
    assert (plan.scale == 1).all()
    assert (plan.color == UNCOLORED).all()


def test_jitter_is_drawn_from_the_official_ranges() -> None:
    """DMVR scales height and width by 0.9 to 1.33 each, jitters the color of 80% of the views, and makes 10% gray."""
    plan = steps_of(Jitter(True, (0.9, 1.33), 0.8, 0.1))
    for factors in plan.scale.T:
        assert 0.9 <= factors.min() < 0.901
        assert 1.329 < factors.max() <= 1.33
        assert abs(factors.mean() - 1.115) < 0.005
    assert abs(np.corrcoef(plan.scale.T)[0, 1]) < 0.03
    changed = (plan.color != UNCOLORED).any(1)
    assert abs(changed.mean() - 0.8) < 0.02
    assert abs(plan.gray.mean() - 0.1) < 0.01
    assert abs(plan.gray[changed].mean() - 0.1) < 0.012, "independent of color jitter"
    ranges = ((-32 / 255, 32 / 255), (0.6, 1.4), (0.6, 1.4), (-0.2, 0.2))
    for values, (low, high) in zip(plan.color[changed].T, ranges, strict=True):
        assert low <= values.min() < low + 0.01
        assert high - 0.01 < values.max() <= high
        assert abs(values.mean() - (low + high) / 2) < 0.01


def test_jitter_does_not_change_the_other_draws() -> None:
    plain, jittered = steps_of(Jitter()), steps_of(Jitter(True, (0.9, 1.33), 0.8, 0.1))
    for name in ("rows", "start", "crop_x", "crop_y", "flip", "mask"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(jittered, name))


def test_balanced_draws_see_rare_classes_as_often_as_common_ones() -> None:
    """90 clips of class 0, 9 of class 1 and one of both, with shares computed by hand."""
    labels = pa.chunked_array([[[0]] * 90, [[1]] * 9 + [[0, 1]]], pa.list_(pa.int32()))
    shares = balanced_shares(labels)
    both = 1 / 91 + 1 / 10
    total = 90 / 91 + 9 / 10 + both
    np.testing.assert_allclose(shares[[0, 89, 90, 98, 99]] * total, [1 / 91, 1 / 91, 1 / 10, 1 / 10, both])
    plan = TrainPlan(0, 100, 100, order=Drawn(shares))
    rows = np.concatenate([plan.step(step).rows for step in range(200)])
    seen = [float(np.isin(rows, wanted).mean()) for wanted in (np.r_[:90, 99], np.r_[90:100])]
    assert seen == [pytest.approx((90 / 91 + both) / total, abs=0.01), pytest.approx((9 / 10 + both) / total, abs=0.01)]
    assert len(set(map(tuple, (plan.step(step).rows for step in range(3))))) == 3


def test_clips_without_a_label_are_drawn_too() -> None:
    shares = balanced_shares(pa.chunked_array([[[0], [0], [1], []]], pa.list_(pa.int32())))
    np.testing.assert_allclose(shares, np.array([0.5, 0.5, 1, 0.5]) / 2.5)
