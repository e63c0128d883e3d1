"""A recipe small enough for tests."""

from train.recipe import Recipe, load_recipe

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


def tiny(*settings: str) -> Recipe:
    """The demo's recipe, smaller."""
    return load_recipe("demo", (*TINY, *settings))
