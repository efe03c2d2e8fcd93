"""Small networks of PyTorch with random weights, and both of its exporters. Import it only where torch is installed."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable

import onnx
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


class LeNet(nn.Module):
    """Two convolutions, average pools, `view` with the batch read from the shape."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 6, 5), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.head = nn.Sequential(nn.Linear(32, 20), nn.ReLU(), nn.Dropout(), nn.Linear(20, 10))

    def forward(self, x: Tensor) -> Tensor:
        h = self.features(x)
        return self.head(h.view(h.size(0), -1))


def vgg() -> nn.Module:
    """BatchNorm behind the convolutions, MaxPool behind the rectifiers, in place."""
    layers: list[nn.Module] = []
    for before, after in ((3, 6), (6, 8)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
        layers += [nn.Conv2d(after, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(True), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3))


class PreActivation(nn.Module):
    """ResNet v2: BatchNorm and Relu before each convolution; one activation module used three times."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(6) for _ in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(6, 6, 3, padding=1, bias=False) for _ in range(2))
        self.act = nn.ReLU()
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=False):
            x = x + conv(self.act(norm(x)))
        return self.head(self.act(self.norms[-1](x)).mean((2, 3)))


class Inverted(nn.Module):
    """A block of MobileNet: expand, depthwise, project; with Squeeze-and-Excite it is v3, without v2."""

    def __init__(self, act: Callable[[], nn.Module], excite: bool) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6), act())
        self.expand = nn.Sequential(nn.Conv2d(6, 12, 1, bias=False), nn.BatchNorm2d(12), act())
        self.depth = nn.Sequential(nn.Conv2d(12, 12, 3, 1, 1, groups=12, bias=False), nn.BatchNorm2d(12), act())
        gate = [nn.AdaptiveAvgPool2d(1), nn.Conv2d(12, 4, 1), nn.ReLU(), nn.Conv2d(4, 12, 1), nn.Hardsigmoid()]
        self.gate = nn.Sequential(*gate) if excite else None
        self.project = nn.Sequential(nn.Conv2d(12, 6, 1, bias=False), nn.BatchNorm2d(6))
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        h = self.depth(self.expand(x))
        h = h if self.gate is None else h * self.gate(h)
        return self.head(torch.flatten(F.adaptive_avg_pool2d(x + self.project(h), 1), 1))


class Dense(nn.Module):
    """A DenseNet block: BatchNorm behind Concat."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(4 + 4 * i), nn.ReLU(), nn.Conv2d(4 + 4 * i, 4, 3, padding=1, bias=False))
            for i in range(3)
        )
        self.end = nn.Sequential(nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 6, 1), nn.AvgPool2d(2))
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.stem(x)]
        for layer in self.layers:
            parts.append(layer(torch.cat(parts, 1)))
        return self.head(self.end(torch.cat(parts, 1)).amax((2, 3)))


class UNet(nn.Module):
    """Down by MaxPool, up by ConvTranspose and by interpolation, skips by Concat."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)])
        self.bottom = nn.Conv2d(6, 6, 3, padding=1)
        self.up = nn.ConvTranspose2d(6, 6, 2, 2)
        self.merge = nn.ModuleList([nn.Conv2d(12, 4, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)])
        self.end = nn.Conv2d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.down[0](x))
        b = F.relu(self.down[1](F.max_pool2d(a, 2)))
        c = F.relu(self.bottom(F.max_pool2d(b, 2)))
        d = F.relu(self.merge[0](torch.cat([b, F.relu(self.up(c))], 1)))
        e = F.interpolate(d, scale_factor=2.0, mode="nearest")
        return self.end(F.relu(self.merge[1](torch.cat([a, e], 1))))


class Mixer(nn.Module):
    """An MLP-Mixer block: the linear layers run over tokens, then over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(3))
        self.tokens = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))
        self.channels = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(self.norms[1](x))
        return self.head(self.norms[2](x).mean(1))


class Transformer(nn.Module):
    """A vision transformer: patches, a class token, positions, nn.TransformerEncoder."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 8, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.positions = nn.Parameter(torch.randn(1, 5, 8) * 0.3)
        layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return self.head(self.encoder(x)[:, 0])


class Signal(nn.Module):
    """A 1-D CNN of bounded rectifiers: clamp, maximum with zeros, ReLU6."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv1d(2, 6, 5), nn.Conv1d(6, 6, 3, dilation=2), nn.Conv1d(6, 6, 3, groups=3)])
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.convs[0](x).clamp(min=0)
        x = self.convs[1](x)
        x = torch.maximum(x, torch.zeros_like(x))
        x = F.relu6(self.convs[2](F.max_pool1d(x, 2)))
        return self.head(x.mean(2))


class Regression(nn.Module):
    """Two inputs, two outputs in physical units."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 12), nn.Linear(3, 12)
        self.middle = nn.Sequential(nn.ReLU(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 12), nn.ReLU())
        self.mean, self.scale = nn.Linear(12, 1), nn.Linear(12, 1)

    def forward(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        h = self.middle(self.left(x) + self.right(z))
        return 40 * self.mean(h) + 100, F.softplus(self.scale(h))


def activations() -> nn.Module:
    """One linear layer before each activation that is no rectifier."""
    kinds = [nn.SiLU(), nn.GELU(), nn.GELU("tanh"), nn.Mish(), nn.LeakyReLU(0.2), nn.PReLU(12), nn.ELU(), nn.Tanh()]
    kinds += [nn.Sigmoid(), nn.Hardswish(), nn.SELU(), nn.Softplus()]
    layers = [layer for kind in kinds for layer in (nn.Linear(12, 12), kind)]
    net = nn.Sequential(*layers, nn.Linear(12, 4))
    for module in net:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.5)
    return net


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[tuple[int, ...], ...]]] = {
    "LeNet": (LeNet, ((1, 16, 16),)),
    "VGG": (vgg, ((3, 8, 8),)),
    "ResNet v2": (PreActivation, ((3, 6, 6),)),
    "MobileNet v2": (lambda: Inverted(nn.ReLU6, False), ((3, 8, 8),)),
    "MobileNet v3": (lambda: Inverted(nn.Hardswish, True), ((3, 8, 8),)),
    "DenseNet": (Dense, ((3, 6, 6),)),
    "U-Net": (UNet, ((2, 8, 8),)),
    "MLP-Mixer": (Mixer, ((3, 8, 8),)),
    "ViT": (Transformer, ((1, 8, 8),)),
    "1-D CNN": (Signal, ((2, 24),)),
    "regression": (Regression, ((6,), (3,))),
    "activations": (activations, ((12,),)),
}
"""Makers and the shapes of their inputs, without the batch."""


def build(name: str) -> nn.Module:
    """The network with seeded weights, its BatchNorm statistics no longer 0 and 1, in evaluation mode."""
    torch.manual_seed(list(NETS).index(name))
    net = NETS[name][0]()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.7, 1.4)
            nn.init.normal_(module.bias, std=0.2)
        elif isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    return net.eval()


def export(name: str, dynamo: bool) -> onnx.ModelProto:
    """The network as one of torch's exporters writes it, with a free batch."""
    net, shapes = build(name), NETS[name][1]
    example = tuple(torch.randn(2, *shape) for shape in shapes)
    inputs = ["x", "z"][: len(shapes)]
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            batch = torch.export.Dim("batch")
            free = tuple({0: batch} for _ in shapes)
            program = torch.onnx.export(
                net, example, dynamo=True, input_names=inputs, dynamic_shapes=free, verbose=False, opset_version=18
            )
            return program.model_proto
        free = {each: {0: "batch"} for each in inputs}
        torch.onnx.export(net, example, stream, dynamo=False, input_names=inputs, dynamic_axes=free, opset_version=17)
    return onnx.load_model_from_string(stream.getvalue())
