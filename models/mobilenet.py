"""MobileNetV2 with any activation.

Source: Sandler et al., "MobileNetV2: inverted residuals and linear bottlenecks", CVPR 2018, arXiv 1801.04381.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

Activation = Callable[[], nn.Module]

STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Table 2 of the paper: expansion, channels, blocks, stride of the first block."""


def _conv(inputs: int, outputs: int, side: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, side, stride=stride, padding=side // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]


class InvertedResidual(nn.Module):
    """Expand by 1x1, filter each channel by 3x3, project by 1x1 without activation; plus x where shapes agree."""

    def __init__(self, activation: Activation, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        wide = inputs * expansion
        expand = [*_conv(inputs, wide, 1), activation()] if expansion > 1 else []
        self.layers = nn.Sequential(
            *expand, *_conv(wide, wide, 3, stride, groups=wide), activation(), *_conv(wide, outputs, 1)
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


class MobileNetV2(nn.Module):
    """Stem, 17 inverted residuals, 1x1 convolution, global average pool, linear.

    Args:
        activation: makes a new activation; called once per layer.
        classes: size of the output.
        large: images of 224 x 224, with the strides of the paper; otherwise the first two strides are 1, for 32 x 32.

    Shapes: image [N, 3, H, W] to logits [N, classes].
    """

    def __init__(self, activation: Activation, classes: int, *, large: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = [*_conv(3, 32, 3, 2 if large else 1), activation()]
        inputs = 32
        for stage, (expansion, outputs, blocks, first) in enumerate(STAGES):
            for block in range(blocks):
                stride = first if block == 0 and (large or stage != 1) else 1
                layers.append(InvertedResidual(activation, inputs, outputs, expansion, stride))
                inputs = outputs
        layers += [*_conv(inputs, 1280, 1), activation()]
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, classes))

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.features(image))
