"""The Multimodal Bottleneck Transformer (Nagrani et al., NeurIPS 2021, arXiv 2107.00135), in plain torch."""

from mbt import weights
from mbt.config import MBTConfig
from mbt.model import MBT

__all__ = ["MBT", "MBTConfig", "weights"]
