"""Recipes and configurations small enough for tests."""

from mbt import MBTConfig
from mbt.train.recipes.loading import load_recipe
from mbt.train.recipes.schema import Recipe

TINY = (
    "model.hidden_size=16",
    "model.num_heads=2",
    "model.num_layers=2",
    "model.mlp_dim=32",
    "model.fusion_layer=0",
    "train.batch_size=8",
    "train.threads=1",
    "train.log_every=1",
    "eval.split=eval",
    "eval.batch_size=16",
)
CONFIG = MBTConfig(
    num_classes=5,
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    mlp_dim=32,
    num_frames=2,
    image_size=32,
    spec_shape=(64, 32),
    fusion_layer=1,
)
VARIANTS = (
    {},
    {"bottleneck_update": "sequential"},
    {"share_encoder": True},
    {"fusion": "attention"},
    {"fusion": "attention", "share_encoder": True},
    {"fusion_layer": 0},
    {"fusion": "attention", "fusion_layer": 0},
    {"modalities": ("rgb",)},
    {"modalities": ("spec",)},
    {"test_with_bottlenecks": False},
)
"""Changed fields of a configuration, one set for each path through the encoder that needs no other sizes."""


def tiny(*settings: str) -> Recipe:
    """The demo's recipe at a smaller size, with `settings`."""
    return load_recipe("demo", (*TINY, *settings))
