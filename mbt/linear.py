"""A linear layer that is fast on every CPU."""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

MIN_WEIGHTS = 1 << 15
"""Number of weights from which oneDNN saves more time than the change of layout costs."""


class Linear(nn.Linear):
    """`nn.Linear`, computed by oneDNN in eager float32 on a CPU.

    torch would use MKL, which is half as fast on AMD CPUs. Names, values and gradients are the same.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        if self._uses_onednn(x):
            # Imported by name, because DeepSpeed replaces torch.nn.functional.linear with one that rejects oneDNN tensors.
            return linear(x.to_mkldnn(), self.weight, self.bias).to_dense()
        return super().forward(x)

    def _uses_onednn(self, x: Tensor) -> bool:
        eager = not torch.compiler.is_compiling() and not torch.is_autocast_enabled("cpu")
        float32_on_cpu = x.device.type == "cpu" and x.dtype == self.weight.dtype == torch.float32
        return eager and float32_on_cpu and self.weight.numel() >= MIN_WEIGHTS and torch.backends.mkldnn.is_available()
