"""Activations of networks that are made to be converted into spiking networks.

Those that learn a threshold compute in its type, float32, and give back the type of x: under autocast, where x is
bfloat16, the gradient of theta is a sum over a whole layer of numbers that bfloat16 would round.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


class _Quantised(torch.autograd.Function):
    """y of `QCFS` and its gradients, in few passes: in theta's type, whatever that of x is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, theta: Tensor, levels: int) -> Tensor:
        y = (x.to(theta.dtype) * levels).div_(theta).add_(0.5).floor_().clamp_(0, levels).mul_(theta / levels)
        ctx.save_for_backward(x, theta, y)
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, theta, y = ctx.saved_tensors
        wide = x.to(theta.dtype)
        inside = (wide >= 0) & (wide <= theta)
        slope = (y - wide).mul_(inside).div_(theta).add_(wide > theta)
        return grad * inside, (slope * grad).sum(), None


class QCFS(nn.Module):
    """Quantization clip-floor-shift activation with a learned threshold.

    ``y = theta / L * clip(floor(x * L / theta + 1/2), 0, L)``

    The output takes the L + 1 values 0, theta/L, ..., theta: the rates that a soft-reset integrate-and-fire neuron
    with threshold theta and initial membrane theta/2 can fire at in T = L time steps. The floor passes its gradient
    straight through, so both x and theta are learned; x is first limited to [0, theta], which changes no value:

    ==================  ===========  ==========================
    x                   dy/dx        dy/dtheta
    ==================  ===========  ==========================
    below 0             0            0
    between             1            y/theta - x/theta
    above theta         0            1
    ==================  ===========  ==========================

    Source: Bu et al., "Optimal ANN-SNN conversion for high-accuracy and ultra-low-latency spiking neural networks",
    ICLR 2022, arXiv 2303.04347.

    Args:
        levels: L, the number of steps above zero.
        threshold: initial value of theta.

    Shapes: x is of any shape, y of the same; ``threshold`` is a scalar (shape ``[]``) for the whole layer.
    """

    MIN_THRESHOLD = 1e-3

    def __init__(self, levels: int = 4, threshold: float = 2.0) -> None:
        super().__init__()
        if levels < 1 or threshold <= 0:
            raise ValueError(f"QCFS needs levels >= 1 and threshold > 0, not {levels} and {threshold}")
        self.levels = levels
        self.threshold = nn.Parameter(torch.tensor(float(threshold)))

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return _Quantised.apply(x, self.threshold, self.levels)
        if x.dtype != self.threshold.dtype:
            return self.forward(x.to(self.threshold.dtype)).to(x.dtype)
        # What an exporter sees, which runs without gradients.
        units = torch.floor(x * self.levels / self.threshold + 0.5)
        return self.threshold / self.levels * torch.clamp(units, 0, self.levels)

    @torch.no_grad()
    def keep_positive(self) -> None:
        """Put a threshold that a step of the optimizer took below ``MIN_THRESHOLD`` back on it."""
        self.threshold.clamp_(min=self.MIN_THRESHOLD)

    def extra_repr(self) -> str:
        return f"levels={self.levels}, threshold={self.threshold.item():.4f}"


class ClippedReLU(nn.Module):
    """Rectifier with a learned ceiling, the training side of error compensation learning.

    ``y = min(max(x, 0), theta)``, so dy/dtheta = 1 where x > theta and 0 elsewhere.

    A soft-reset neuron with threshold theta cannot send more than theta per step; a network trained with this ceiling
    never asks it to. Convert it with ``--neuron signed``, the dual-threshold neuron that starts at theta/2.

    Source: Liu et al., "Efficient ANN-SNN conversion with error compensation learning", ICML 2025, arXiv 2506.01968;
    the ceiling itself: Ho and Chang, "TCL: an ANN-to-SNN conversion with trainable clipping layers", DAC 2021.

    Args:
        threshold: initial value of theta.

    Shapes: x is of any shape, y of the same; ``threshold`` is a scalar (shape ``[]``) for the whole layer.
    """

    MIN_THRESHOLD = QCFS.MIN_THRESHOLD

    def __init__(self, threshold: float = 4.0) -> None:
        super().__init__()
        if threshold <= 0:
            raise ValueError(f"ClippedReLU needs a threshold > 0, not {threshold}")
        self.threshold = nn.Parameter(torch.tensor(float(threshold)))

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != self.threshold.dtype:
            return self.forward(x.to(self.threshold.dtype)).to(x.dtype)
        return torch.minimum(torch.relu(x), self.threshold)

    keep_positive = QCFS.keep_positive

    def extra_repr(self) -> str:
        return f"threshold={self.threshold.item():.4f}"


ACTIVATIONS = ("relu", "relu6", "qcfs", "clipped")
"""What `activation` makes."""


def activation(name: str, levels: int = 8, threshold: float = 8.0) -> Callable[[], nn.Module]:
    """A function that makes new activations, one per layer.

    Args:
        name: one of `ACTIVATIONS`.
        levels: L of QCFS.
        threshold: initial theta of the activations that learn it.

    Raises:
        ValueError: there is no such activation.
    """
    if name == "relu":
        return nn.ReLU
    if name == "relu6":
        return nn.ReLU6
    if name == "qcfs":
        return partial(QCFS, levels, threshold)
    if name == "clipped":
        return partial(ClippedReLU, threshold)
    raise ValueError(f"no activation '{name}': there are {', '.join(ACTIVATIONS)}")


def keep_thresholds_positive(net: nn.Module) -> None:
    """After a step of the optimizer: no learned threshold below `QCFS.MIN_THRESHOLD`."""
    for module in net.modules():
        if isinstance(module, (QCFS, ClippedReLU)):
            module.keep_positive()
