"""Residual networks of basic blocks: ResNet-18 and -34, ResNet-20 to -56, with any activation.

Source: He et al., "Deep residual learning for image recognition", CVPR 2016, arXiv 1512.03385. Shortcuts that change
the shape are 1x1 convolutions (option B). Layers are registered in the order of the published QCFS code, so that its
checkpoints can be loaded (`checkpoints.py`).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

Activation = Callable[[], nn.Module]

DEPTHS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    20: (3, 3, 3),
    32: (5, 5, 5),
    44: (7, 7, 7),
    56: (9, 9, 9),
}
"""Blocks per stage: four stages from 64 channels, or three from 16."""


class BasicBlock(nn.Module):
    """act(BN(conv(act(BN(conv(x))))) + shortcut(x)), [N, inputs, H, W] to [N, outputs, H/stride, W/stride]."""

    def __init__(self, activation: Activation, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            activation(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )
        self.act = activation()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.residual(x) + self.shortcut(x))


class ResNet(nn.Module):
    """Stem, stages of `BasicBlock`, global average pool, linear.

    Args:
        depth: one of `DEPTHS`.
        activation: makes a new activation; called once per layer.
        classes: size of the output.
        large: images of 224 x 224: a 7x7 stem of stride 2 and a 3x3 pool (average) before the stages, instead of a
            3x3 stem for 32 x 32.

    Shapes: image [N, 3, H, W] to logits [N, classes].
    """

    def __init__(self, depth: int, activation: Activation, classes: int, *, large: bool = False) -> None:
        super().__init__()
        blocks = DEPTHS[depth]
        width = 16 if len(blocks) == 3 else 64
        side, stride = (7, 2) if large else (3, 1)
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, side, stride=stride, padding=side // 2, bias=False), nn.BatchNorm2d(width), activation()
        )
        self.pool = nn.AvgPool2d(3, stride=2, padding=1) if large else nn.Identity()
        stages, inputs = [], width
        for stage, count in enumerate(blocks):
            outputs = width << stage
            for block in range(count):
                stages.append(BasicBlock(activation, inputs, outputs, 2 if stage and not block else 1))
                inputs = outputs
        self.stages = nn.Sequential(*stages)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.stages(self.pool(self.stem(image))))
