"""Weights in: where the tensors of an MBT may come from."""

from mbt.flax_checkpoint import read_flax_checkpoint
from mbt.scenic import from_scenic, interior_frames
from mbt.surgery import init_from_vit
from mbt.vit import ViT, read_vit, timm_vit

__all__ = ["ViT", "from_scenic", "init_from_vit", "interior_frames", "read_flax_checkpoint", "read_vit", "timm_vit"]
