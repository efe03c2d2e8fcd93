"""Train a small residual network on scikit-learn's handwritten digits, with ReLU and with QCFS; export both to ONNX.

python models/digits.py --out models --epochs 40 --seed 0
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import onnxruntime
import torch
from activations import QCFS
from export import export
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

TEST, CALIBRATION = 360, 256  # images
VALIDATION = 287  # images, a fifth of the training part
SPLIT_SEED = 0  # fixed, so that every --seed is measured on the same test images


class Network(NamedTuple):
    activation: Callable[[], nn.Module]
    exporter: str


NETWORKS = {
    "digits_relu.onnx": Network(nn.ReLU, "dynamo"),
    "digits_qcfs4.onnx": Network(partial(QCFS, 4), "torchscript"),
}


class Images(NamedTuple):
    """Images, float32 [n, 1, 8, 8] in 0..1, and their classes, int64 [n]."""

    image: NDArray[np.float32]
    label: NDArray[np.int64]

    def take(self, index: NDArray[np.int64]) -> Images:
        return Images(self.image[index], self.label[index])

    def split(self, size: int) -> tuple[Images, Images]:
        """Stratified by class: the others, and `size` images."""
        rest, part = train_test_split(
            np.arange(len(self.label)), test_size=size, stratify=self.label, random_state=SPLIT_SEED
        )
        return self.take(rest), self.take(part)


def load() -> Images:
    """The 1797 digits; should an image occur more than once, only its first copy."""
    data = load_digits()
    _, first = np.unique(data.data, axis=0, return_index=True)
    first.sort()
    image = (data.images[first, None] / 16).astype(np.float32)
    return Images(image, data.target[first].astype(np.int64))


class Digits(nn.Module):
    """Conv-BN-act twice, average pool, one residual block, global average pool, linear.

    Args:
        activation: makes a new activation module; called once per layer.
        width: channels of the first convolution; the others have twice as many.

    Shapes: image [N, 1, 8, 8] in 0..1 to logits [N, 10].
    """

    def __init__(self, activation: Callable[[], nn.Module], width: int = 16) -> None:
        super().__init__()
        wide = 2 * width
        self.stem = nn.Sequential(
            *self.conv(1, width), activation(), *self.conv(width, wide), activation(), nn.AvgPool2d(2)
        )
        self.block = nn.Sequential(*self.conv(wide, wide), activation(), *self.conv(wide, wide))
        self.act = activation()
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(wide, 10))

    @staticmethod
    def conv(inputs: int, outputs: int) -> tuple[nn.Module, nn.Module]:
        return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        return self.head(self.act(x + self.block(x)))


def shifted(image: Tensor, pixels: int, generator: torch.Generator) -> Tensor:
    """Each image [n, 1, 8, 8] moved by up to `pixels` up or down and left or right; zeros come in at the border."""
    n, _, height, width = image.shape
    offset = torch.randint(0, 2 * pixels + 1, (2, n, 1), generator=generator)
    row, column = offset[0] + torch.arange(height), offset[1] + torch.arange(width)
    padded = pad(image[:, 0], (pixels,) * 4)
    return padded[torch.arange(n)[:, None, None], row[:, :, None], column[:, None, :]][:, None]


def train(
    data: Images,
    activation: Callable[[], nn.Module],
    *,
    epochs: int,
    seed: int,
    shift: int = 1,
    batch: int = 64,
    rate: float = 5e-3,
) -> Digits:
    """The network after the last of `epochs` epochs of AdamW with a one-cycle learning rate, in evaluation mode."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    net = Digits(activation)
    image, label = torch.from_numpy(data.image), torch.from_numpy(data.label)
    steps = len(label) // batch  # the incomplete batch is left out
    if not steps:
        raise ValueError(f"{len(label)} images are less than one batch of {batch}")
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * steps)
    for _ in range(epochs):
        order = torch.randperm(len(label), generator=generator)[: steps * batch]
        for index in order.split(batch):
            loss = cross_entropy(net(shifted(image[index], shift, generator)), label[index], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            for module in net.modules():
                if isinstance(module, QCFS):
                    module.keep_positive()
    return net.eval()


@torch.no_grad()
def logits(net: Digits, image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Image [n, 1, 8, 8] to logits [n, 10]."""
    return net(torch.from_numpy(image)).numpy()


def onnx_logits(path: Path, image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Image [n, 1, 8, 8] to logits [n, 10], by onnxruntime on the CPU."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["logits"], {"image": image})[0])


def accuracy(scores: NDArray[np.float32], label: NDArray[np.int64]) -> float:
    """Percentage of rows of scores [n, 10] whose largest entry is at label [n]."""
    return 100 * float(np.mean(scores.argmax(1) == label))


def save(path: Path, data: Images) -> None:
    np.savez_compressed(path, image=data.image, label=data.label)
    click.echo(f"{path.name}: {len(data.label)} images, {path.stat().st_size} bytes")


@click.command()
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("models"), show_default=True)
@click.option("--epochs", type=click.IntRange(1), default=40, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True, help="Initial weights, order of the images, shifts.")
@click.option("--validate", is_flag=True, help="Measure on a held-out fifth of the training part; write nothing.")
def main(out: Path, epochs: int, seed: int, validate: bool) -> None:
    """Train the networks, export them to OUT and measure them on the test images."""
    torch.set_num_threads(1)  # sums in one order, so that a second run gives the same weights
    torch.use_deterministic_algorithms(True)
    training, test = load().split(TEST)
    if validate:
        training, held_out = training.split(VALIDATION)
        for name, network in NETWORKS.items():
            net = train(training, network.activation, epochs=epochs, seed=seed)
            percent = accuracy(logits(net, held_out.image), held_out.label)
            click.echo(f"{name}: {percent:.2f} % of {VALIDATION} held-out images")
        return
    out.mkdir(parents=True, exist_ok=True)
    save(out / "digits_calibration.npz", training.split(CALIBRATION)[1])
    save(out / "digits_test.npz", test)
    for name, network in NETWORKS.items():
        net = train(training, network.activation, epochs=epochs, seed=seed)
        export(net, torch.zeros(2, 1, 8, 8), out / name, network.exporter)
        expected, scores = logits(net, test.image), onnx_logits(out / name, test.image)
        difference = np.abs(scores - expected).max(1)
        correct, size = np.sum(scores.argmax(1) == test.label), (out / name).stat().st_size
        click.echo(f"{name}: {correct} of {TEST} = {accuracy(scores, test.label):.2f} %, {size} bytes")
        click.echo(
            f"  torch {accuracy(expected, test.label):.2f} %; max abs difference {difference.max():.2g}, "
            f"above 1e-4 in {np.sum(difference > 1e-4)} images"
        )


if __name__ == "__main__":
    main()
