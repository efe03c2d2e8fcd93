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

TWO_LAYOUTS = ("resnet18", "resnet20", "resnet34", "mobilenetv2")
"""Networks with a layout for images of 32 x 32 and one for 224 x 224; the others go by the images' size alone."""


def make(
    name: str, activation: Callable[[], nn.Module], classes: int, *, hidden: int = 4096, large: bool | None = None
) -> nn.Module:
    """A network with random weights.

    Args:
        name: one of `NETWORKS`, or a residual network of another depth (`resnet.DEPTHS`).
        activation: makes a new activation (`activations.activation`).
        classes: 10 or 100 for images of 32 x 32, 1000 for images of 224 x 224.
        hidden: width of the linear layers of VGG-16.
        large: of `TWO_LAYOUTS`: the layout for images of 224 x 224 (a ResNet's stem divides their sides by 4,
            MobileNetV2 has the strides of the paper), whatever the size of the images; None: with 1000 classes.

    Raises:
        ValueError: there is no such network.
    """
    side = image_side(classes)
    large = side == 224 if large is None else large
    if name == "vgg16":
        return VGG16(activation, classes, hidden=hidden, side=side)
    if name in {f"resnet{depth}" for depth in DEPTHS}:
        return ResNet(int(name.removeprefix("resnet")), activation, classes, large=large)
    if name == "mobilenetv2":
        return MobileNetV2(activation, classes, large=large)
    if name == "vit":
        return ViT(activation, classes, side=side, patch=16 if side == 224 else 4)
    raise ValueError(f"no network '{name}': there are {', '.join(NETWORKS)}")


def image_side(classes: int) -> int:
    """Height and width of the images that `make` builds a network for."""
    return 224 if classes == 1000 else 32
