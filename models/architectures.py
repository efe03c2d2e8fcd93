"""The networks by name."""

from __future__ import annotations

from collections.abc import Callable

from mobilenet import MobileNetV2
from resnet import DEPTHS, ResNet
from torch import nn
from vgg import VGG16
from vit import ViT

NETWORKS = ("vgg16", "resnet18", "resnet20", "resnet34", "mobilenetv2", "vit")
"""What `make` makes."""


def make(name: str, activation: Callable[[], nn.Module], classes: int, *, hidden: int = 4096) -> nn.Module:
    """A network with random weights.

    Args:
        name: one of `NETWORKS`, or a residual network of another depth (`resnet.DEPTHS`).
        activation: makes a new activation (`activations.activation`).
        classes: 10 or 100 for images of 32 x 32, 1000 for images of 224 x 224.
        hidden: width of the linear layers of VGG-16.

    Raises:
        ValueError: there is no such network.
    """
    large = classes == 1000
    side = 224 if large else 32
    if name == "vgg16":
        return VGG16(activation, classes, hidden=hidden, side=side)
    if name in {f"resnet{depth}" for depth in DEPTHS}:
        return ResNet(int(name.removeprefix("resnet")), activation, classes, large=large)
    if name == "mobilenetv2":
        return MobileNetV2(activation, classes, large=large)
    if name == "vit":
        return ViT(activation, classes, side=side, patch=16 if large else 4)
    raise ValueError(f"no network '{name}': there are {', '.join(NETWORKS)}")


def image_side(classes: int) -> int:
    """Height and width of the images that `make` builds a network for."""
    return 224 if classes == 1000 else 32
