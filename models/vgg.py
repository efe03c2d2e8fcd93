"""VGG-16 with batch normalisation and average pooling, with any activation.

Source: Simonyan and Zisserman, arXiv 1409.1556; average pooling as in the literature on conversion (spikes have no
maximum before they have all arrived). Layers are registered in the order of the published QCFS code.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Channels of the 13 convolutions; each stage ends with a pool."""


class VGG16(nn.Module):
    """Five stages of Conv-BN-act with an average pool, then three linear layers.

    Args:
        activation: makes a new activation; called once per layer.
        classes: size of the output.
        hidden: width of the first two linear layers (4096 in the published networks).
        side: height and width of the images, a multiple of 32.

    Shapes: image [N, 3, side, side] to logits [N, classes].
    """

    def __init__(
        self, activation: Callable[[], nn.Module], classes: int, *, hidden: int = 4096, side: int = 32
    ) -> None:
        super().__init__()
        self.side = side
        layers: list[nn.Module] = []
        inputs = 3
        for stage in STAGES:
            for outputs in stage:
                layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), activation()]
                inputs = outputs
            layers.append(nn.AvgPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(inputs * (side // 32) ** 2, hidden),
            activation(),
            nn.Linear(hidden, hidden),
            activation(),
            nn.Linear(hidden, classes),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, image: Tensor) -> Tensor:
        return self.classifier(self.features(image))
