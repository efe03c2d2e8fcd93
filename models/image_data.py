"""Labelled images for training: a folder or an npz, as uint8 [n, 3, H, W].

What `read` takes:

1. an ``.npz`` with arrays ``x`` or ``image`` (uint8, [n, H, W, 3] or [n, 3, H, W]) and ``y`` or ``label``;
2. a folder with CIFAR-10 as lossless WebP grids, 100 images of 32 x 32 a row (``cifar10_train_0.webp``, ...,
   ``cifar10_test.webp``) and ``cifar10_{train,test}_labels.npy``;
3. a folder with a sub-folder per part (``train``, ``test``), in it one per class, of images that are resized.
   Classes are numbered by the sorted names of those in ``train``; hidden files, and those of other kinds, are left out.
"""

from __future__ import annotations

import hashlib
import math
import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the channels, for pixels in 0..1."""
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".gif", ".tif", ".tiff")
"""What the files of images are called in a folder per class."""


class Labelled(NamedTuple):
    """Images uint8 [n, 3, H, W] and their classes int64 [n]."""

    image: Tensor
    label: Tensor

    def to(self, device: torch.device) -> Labelled:
        return Labelled(self.image.to(device), self.label.to(device))

    def take(self, index: Tensor) -> Labelled:
        return Labelled(self.image[index], self.label[index])

    def digest(self) -> str:
        """Of the labels and of the shape of the images."""
        return hashlib.sha256(self.label.cpu().numpy().tobytes() + repr(list(self.image.shape)).encode()).hexdigest()


def normalised(image: Tensor) -> Tensor:
    """uint8 [n, 3, H, W] to float32, (x / 255 - mean) / std."""
    mean, std = (torch.tensor(values, device=image.device).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (image.float() / 255 - mean) / std


def read(path: Path, part: str, side: int = 32, classes: int = 10, names: Sequence[str] = ()) -> Labelled:
    """The images of a part.

    Args:
        path: see the module.
        part: ``train`` or ``test``; an ``.npz`` is one part, whichever is asked for.
        side: height and width of the images; those of a folder per class are resized to it.
        classes: labels are in 0..classes - 1.
        names: of the classes, in the order of their labels (`class_names`); none: those of the folder that is read.

    Raises:
        ValueError: what was found is none of the three, is not consistent, or has another size or other labels.
    """
    if path.is_file():
        image, label = _arrays(path)
    elif (path / f"cifar10_{part}_labels.npy").exists():
        image, label = _grids(path, part)
    elif (path / part).is_dir():
        image, label = _folder(path / part, side, names)
    else:
        raise ValueError(f"'{path}' has no '{part}' images: see models/image_data.py for what is read")
    return Labelled(_checked_images(path, image, side), _checked_labels(path, label, len(image), classes))


def class_names(path: Path) -> list[str]:
    """Classes of the training images of a folder per class, in the order of their labels; none elsewhere."""
    return _sub_folders(path / "train") if (path / "train").is_dir() else []


def _checked_images(path: Path, image: NDArray[np.uint8], side: int) -> Tensor:
    """uint8 [n, 3, side, side], or a ValueError."""
    if image.dtype != np.uint8 or image.ndim != 4 or not len(image):
        raise ValueError(f"'{path}': images {image.dtype} {list(image.shape)}; uint8 [n, 3, H, W] or [n, H, W, 3]?")
    if image.shape[1] != 3 and image.shape[3] == 3:
        image = image.transpose(0, 3, 1, 2)
    if image.shape[1] != 3:
        raise ValueError(f"'{path}': images {list(image.shape)} have no axis of three colours")
    if image.shape[2:] != (side, side):
        found = " x ".join(map(str, image.shape[2:]))
        raise ValueError(f"'{path}': images of {found}, this network takes {side} x {side}: resize them")
    return torch.from_numpy(np.ascontiguousarray(image))


def _checked_labels(path: Path, label: NDArray[np.integer], count: int, classes: int) -> Tensor:
    """int64 [count] in 0..classes - 1, or a ValueError."""
    if label.ndim == 2 and label.shape[1] == 1:
        label = label[:, 0]
    if label.shape != (count,):
        raise ValueError(f"'{path}': {count} images and labels {list(label.shape)}; one label per image?")
    if label.dtype.kind not in "iu":
        raise ValueError(f"'{path}': labels are {label.dtype}; integers from 0 are needed")
    wrong = label[(label < 0) | (label >= classes)]
    if len(wrong):
        raise ValueError(f"'{path}': label {wrong[0]} is outside 0..{classes - 1}: --classes says how many there are")
    return torch.from_numpy(label.astype(np.int64))


def _arrays(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.integer]]:
    with _damage_named(path):
        arrays = np.load(path)
    if isinstance(arrays, np.ndarray):
        raise ValueError(f"'{path}' is one array without labels; an .npz with x and y is needed")
    with arrays:
        names = [next((n for n in choice if n in arrays), None) for choice in (("x", "image"), ("y", "label"))]
        if names[0] is None or names[1] is None:
            raise ValueError(f"'{path}' has arrays {', '.join(arrays)}; x or image, and y or label are needed")
        with _damage_named(path):
            return arrays[names[0]], arrays[names[1]]


def _grids(path: Path, part: str) -> tuple[NDArray[np.uint8], NDArray[np.integer]]:
    files = [path / "cifar10_test.webp"]
    if part == "train":  # in the order of their numbers: 10 comes after 2
        files = sorted(path.glob("cifar10_train_*.webp"), key=lambda file: (len(file.name), file.name))
    if not files:
        raise ValueError(f"'{path}' has no cifar10_train_0.webp beside its labels")
    images = []
    for file in files:
        grid = np.asarray(_colours(file))
        if len(grid) % 32 or grid.shape[1] != 3200:
            raise ValueError(f"'{file}' is {grid.shape[1]} x {len(grid)}; rows of 100 images of 32 x 32 are needed")
        tiles = grid.reshape(len(grid) // 32, 32, 100, 32, 3).transpose(0, 2, 4, 1, 3)
        images.append(tiles.reshape(-1, 3, 32, 32))
    labels = path / f"cifar10_{part}_labels.npy"
    with _damage_named(labels):
        label = np.load(labels)
    return np.concatenate(images), label


def _folder(path: Path, side: int, names: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.integer]]:
    found = _sub_folders(path)
    label = {name: number for number, name in enumerate(names or found)}
    unknown = [name for name in found if name not in label]
    if unknown:
        raise ValueError(f"'{path}' has a class '{unknown[0]}' that the training images have not")
    files = [(file, label[name]) for name in found for file in sorted((path / name).glob("[!.]*")) if _is_image(file)]
    if not files:
        raise ValueError(f"'{path}' has no images in sub-folders, one per class")
    if (needed := 2 * len(files) * 3 * side**2) > memory():  # as they are read, and in the order of the seed
        raise ValueError(
            f"'{path}': {len(files)} images of {side} x {side} take {needed / 1e9:.0f} GB, this machine has "
            f"{memory() / 1e9:.0f} GB: put a part of them into a folder"
        )
    images = np.empty((len(files), 3, side, side), np.uint8)
    for row, (file, _) in enumerate(files):
        images[row] = np.asarray(_colours(file).resize((side, side))).transpose(2, 0, 1)
    return images, np.array([number for _, number in files])


def memory() -> float:
    """Bytes of this machine's memory; infinity where the system does not say."""
    if not hasattr(os, "sysconf"):
        return math.inf
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()


def _colours(path: Path) -> Image.Image:
    """An image file in RGB, or a ValueError."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError):  # of Pillow, for what is no image, and for half of one
        raise ValueError(f"'{path}' cannot be read as an image: take it out") from None


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """One line for what NumPy cannot read; its own would advise to unpickle."""
    try:
        yield
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error):
        raise ValueError(f"'{path}' is damaged, or no file of arrays") from None


def _sub_folders(path: Path) -> list[str]:
    """Their names, sorted, without hidden ones."""
    return sorted(child.name for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))
