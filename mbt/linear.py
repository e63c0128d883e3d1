"""A linear layer that is as fast on every CPU as that CPU allows."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WORTHWHILE = 1 << 15
"""Weights from which a change of layout costs less than it gains."""


class Linear(nn.Linear):
    """`nn.Linear`; in eager float32 on a CPU it is computed by oneDNN.

    torch takes MKL there, which leaves half of the speed of CPUs by AMD unused. Names, values and gradients are the same.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        if self._by_onednn(x):
            return F.linear(x.to_mkldnn(), self.weight, self.bias).to_dense()
        return super().forward(x)

    def _by_onednn(self, x: Tensor) -> bool:
        eager = not torch.compiler.is_compiling() and not torch.is_autocast_enabled("cpu")
        plain = eager and x.device.type == "cpu" and x.dtype == self.weight.dtype == torch.float32
        return plain and self.weight.numel() >= WORTHWHILE and torch.backends.mkldnn.is_available()
