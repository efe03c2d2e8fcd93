"""The real images and networks that the measuring tools read from a folder, and tables in Markdown.

The folder holds CIFAR-10 as lossless WebP grids (``cifar10_train_0.webp``: 100 x 100 images of 32 x 32, row by row;
``cifar10_test.webp``: 10 x 100), labels as ``cifar10_{train,test}_labels.npy``, MNIST as ``mnist_{train,test}.npz``,
folders ``imagenet_sample`` and ``imagenet_val`` of images with ``labels.csv``, and the networks in ``models/``.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ftbc_onnx import Preprocessing
from ftbc_onnx.data import open_data
from ftbc_onnx.graph.files import input_specs, load

CIFAR_MEAN, CIFAR_STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
Row = dict[str, Any]
Labelled = tuple[np.ndarray, np.ndarray]


@cache  # decoding takes a second, and a process that measures many cases asks for the same images each time
def cifar(data: Path, part: str, images: int) -> Labelled:
    """The first images of CIFAR-10, normalised, [n, 3, 32, 32], and their labels [n]; not to be written to."""
    name = "cifar10_test.webp" if part == "test" else "cifar10_train_0.webp"
    grid = np.asarray(Image.open(data / name).convert("RGB"))
    rows = grid.shape[0] // 32
    pixels = grid.reshape(rows, 32, 100, 32, 3).transpose(0, 2, 1, 3, 4).reshape(-1, 32, 32, 3)[:images]
    x = (pixels.astype(np.float32) / 255 - CIFAR_MEAN) / CIFAR_STD
    x, y = np.ascontiguousarray(x.transpose(0, 3, 1, 2)), np.load(data / f"cifar10_{part}_labels.npy")[:images]
    x.flags.writeable = y.flags.writeable = False
    return x, y


def mnist(data: Path, part: str, images: int) -> Labelled:
    """The first digits of MNIST, [n, 1, 28, 28] in 0..1, and their labels [n]."""
    with np.load(data / f"mnist_{part}.npz") as arrays:
        x, y = arrays["x"][:images], arrays["y"][:images]
    return (x.astype(np.float32) / 255)[:, None], y.astype(np.int64)


def digits(part: str) -> Labelled:
    """The digits of this repository: images [n, 1, 8, 8] and labels [n] of ``calibration`` or ``test``."""
    with np.load(Path(__file__).resolve().parent.parent / "models" / f"digits_{part}.npz") as arrays:
        return arrays["image"], arrays["label"]


SQUEEZENET = Preprocessing(crop=224, scale=1.0, mean=(104.0, 117.0, 123.0), std=(1.0, 1.0, 1.0), color="bgr")
MOBILENET = Preprocessing(resize=128, crop=128, scale=2 / 255, mean=(1.0, 1.0, 1.0), std=(1.0, 1.0, 1.0))


def imagenet(data: Path, model: Path, preprocessing: Preprocessing, folder: str, images: int) -> Labelled:
    """Images of a folder evenly over its list, as a model takes them, and their labels."""
    source = open_data(data / folder, input_specs(load(model).model), preprocessing)
    chosen = source.subset(np.linspace(0, len(source) - 1, min(images, len(source))).astype(np.int64))
    batch = next(chosen.batches(len(chosen)))
    assert batch.labels is not None
    return next(iter(batch.feeds.values())), batch.labels


def markdown(rows: list[Row]) -> str:
    """Rows as a Markdown table."""
    heads = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    lines += ["| " + " | ".join(_cell(row.get(head, "")) for head in heads) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)
