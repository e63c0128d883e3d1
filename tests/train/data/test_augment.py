"""SpecAugment and mixup, beyond what the official golden files cover."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mbt.train.data.augment import augment, mixup, spec_augment
from mbt.train.data.batch import Batch
from mbt.train.data.views import eval_plan
from mbt.train.sampling.plan import Mixing, TrainPlan
from tests.tiny import tiny


def test_each_example_has_one_time_mask_and_one_frequency_mask() -> None:
    draws = np.random.default_rng(0).random((500, 4))
    masked = spec_augment(torch.ones(500, 100, 32), draws, 24, 8) == 0
    rows = masked.all(2).sum(1).numpy()
    bands = masked.all(1).sum(1).numpy()
    np.testing.assert_array_equal(rows, (draws[:, 0] * 24).astype(int))
    np.testing.assert_array_equal(bands, (draws[:, 2] * 8).astype(int))
    assert (rows.min(), rows.max(), bands.min(), bands.max()) == (0, 23, 0, 7)
    for example, (r, b) in zip(masked, zip(rows, bands, strict=True), strict=True):
        assert int(example.sum()) == r * 32 + b * 100 - r * b
        edges = example.all(1).int().diff().abs().sum()
        assert edges <= 2, "the masked rows are adjacent"


def test_masks_reach_both_ends() -> None:
    draws = np.array([[0.5, 0.0, 0.0, 0.0], [0.5, 0.999999, 0.0, 0.0]])
    masked = spec_augment(torch.ones(2, 100, 32), draws, 20, 8)[:, :, 0] == 0
    assert masked[0].nonzero().flatten().tolist() == list(range(10))
    assert masked[1].nonzero().flatten().tolist() == list(range(90, 100))


def test_masks_of_length_zero_change_nothing() -> None:
    spec = torch.randn(3, 50, 8)
    assert torch.equal(spec_augment(spec, np.full((3, 4), 0.9), 0, 0), spec)


def test_masks_longer_than_the_spectrogram_are_clipped() -> None:
    assert (spec_augment(torch.ones(1, 10, 4), np.full((1, 4), 0.99), 192, 48) == 0).any()


def batch(size: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(0)
    return Batch(
        eval_plan(np.arange(size)),
        torch.randn(size, 2, 3, 4, 4, generator=generator),
        torch.randn(size, 8, 4, generator=generator),
        {"all": torch.eye(size)},
    )


def test_partners_come_from_the_same_group() -> None:
    """With groups of two and weight 0, neighbors are swapped."""
    whole = batch()
    mixed = mixup(whole, np.zeros((6, 2)), False, 2)
    assert mixed.targets is not None
    assert mixed.targets["all"].argmax(1).tolist() == [1, 0, 3, 2, 5, 4]
    assert mixed.rgb is not None
    assert whole.rgb is not None
    assert torch.equal(mixed.rgb[0], whole.rgb[1])


def test_targets_are_mixed_with_the_weights_of_their_modality() -> None:
    weights = np.array([[1.0, 0.25]] * 6)
    mixed = mixup(batch(), weights, True, 6)
    assert mixed.targets is not None
    assert set(mixed.targets) == {"rgb", "spec"}
    assert torch.equal(mixed.targets["rgb"], torch.eye(6))
    torch.testing.assert_close(mixed.targets["spec"], 0.25 * torch.eye(6) + 0.75 * torch.eye(6).flip(0))


def test_mixup_of_a_single_modality() -> None:
    mixed = mixup(replace(batch(), rgb=None), np.full((6, 2), 0.5), False, 2)
    assert mixed.rgb is None
    assert mixed.targets is not None
    assert mixed.targets["all"].max() == 0.5


def test_parts_of_a_batch_are_mixed_like_the_whole() -> None:
    """So training does not depend on the number of ranks."""
    recipe = tiny("train.mixup_alpha=0.5", "train.modality_mixup=true", "train.time_mask=5").train
    plan = TrainPlan(0, 100, 8, recipe.mixing).step(3)
    whole = replace(batch(8), plan=plan)
    together = augment(whole, recipe)
    parts = [augment(part, recipe) for part in whole.split(4)]
    for name in ("rgb", "spec"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(together, name))


@pytest.mark.parametrize(("group", "groups"), [(2, 32), (64, 1)])
def test_weights_are_drawn_once_per_group(group: int, groups: int) -> None:
    weights = TrainPlan(0, 100, 64, Mixing(0.3, True, group)).step(0).mix
    assert len(np.unique(weights[:, 0])) == groups
    np.testing.assert_array_equal(weights, np.repeat(weights[::group], group, axis=0))
    assert (weights[:, 0] != weights[:, 1]).all()
    together = TrainPlan(0, 100, 64, Mixing(0.3, False, group)).step(0).mix
    np.testing.assert_array_equal(together[:, 0], together[:, 1])


def test_weights_follow_a_beta_distribution() -> None:
    """Beta(0.3, 0.3) has mean 1/2 and variance 1/6.4; weights below one half are kept."""
    plan = TrainPlan(0, 100, 64, Mixing(0.3, True, 2))
    weights = np.concatenate([plan.step(step).mix[::2].ravel() for step in range(200)])
    assert weights.mean() == pytest.approx(0.5, abs=0.01)
    assert weights.var() == pytest.approx(1 / 6.4, rel=0.03)
    assert (weights < 0.5).mean() == pytest.approx(0.5, abs=0.02)
