"""Augmentation of batches of small colour images: crop, flip, AutoAugment with the CIFAR-10 policy, Cutout.

Images are uint8 [N, 3, H, W], before and after, on any device. Every image has its own draws, from a
``torch.Generator`` on the device of the images. Nothing waits for the device.

The magnitudes 0 to 9 of AutoAugment are spread evenly over the ranges of the paper; the sign is random where a range
has two sides. Translations are scaled from the paper's 150 of 331 pixels to the size of the image. `image_operations`
says what each operation does, and in which unit its amount is.

Sources: Cubuk et al., "AutoAugment", CVPR 2019, arXiv 1805.09501 (policy: appendix, CIFAR-10; ranges: table of
operations); DeVries and Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout",
arXiv 1708.04552.
"""

from __future__ import annotations

from functools import cache

import torch
from image_operations import OPERATIONS, apply, colour, moved
from torch import Generator, Tensor

RANGES = {
    "ShearX": (0, 0.3, True),
    "ShearY": (0, 0.3, True),
    "TranslateX": (0, 150 / 331, True),
    "TranslateY": (0, 150 / 331, True),
    "Rotate": (0, 30, True),
    "Color": (1, 0.9, True),
    "Contrast": (1, 0.9, True),
    "Brightness": (1, 0.9, True),
    "Sharpness": (1, 0.9, True),
    "Posterize": (8, -4, False),
    "Solarize": (256, -256, False),
    "AutoContrast": (0, 0, False),
    "Equalize": (0, 0, False),
    "Invert": (0, 0, False),
}
"""Operation -> (start, span, signed): at magnitude m of 0..9 its amount is start + span m/9, or start ± span m/9."""

POLICY = (
    # operation, probability, magnitude; then the second operation
    (("Invert", 0.1, 7), ("Contrast", 0.2, 6)),
    (("Rotate", 0.7, 2), ("TranslateX", 0.3, 9)),
    (("Sharpness", 0.8, 1), ("Sharpness", 0.9, 3)),
    (("ShearY", 0.5, 8), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.5, 8), ("Equalize", 0.9, 2)),
    (("ShearY", 0.2, 7), ("Posterize", 0.3, 7)),
    (("Color", 0.4, 3), ("Brightness", 0.6, 7)),
    (("Sharpness", 0.3, 9), ("Brightness", 0.7, 9)),
    (("Equalize", 0.6, 5), ("Equalize", 0.5, 1)),
    (("Contrast", 0.6, 7), ("Sharpness", 0.6, 5)),
    (("Color", 0.7, 7), ("TranslateX", 0.5, 8)),
    (("Equalize", 0.3, 7), ("AutoContrast", 0.4, 8)),
    (("TranslateY", 0.4, 3), ("Sharpness", 0.2, 6)),
    (("Brightness", 0.9, 6), ("Color", 0.2, 8)),
    (("Solarize", 0.5, 2), ("Invert", 0.0, 3)),
    (("Equalize", 0.2, 0), ("AutoContrast", 0.6, 0)),
    (("Equalize", 0.2, 8), ("Equalize", 0.6, 4)),
    (("Color", 0.9, 9), ("Equalize", 0.6, 6)),
    (("AutoContrast", 0.8, 4), ("Solarize", 0.2, 8)),
    (("Brightness", 0.1, 3), ("Color", 0.7, 0)),
    (("Solarize", 0.4, 5), ("AutoContrast", 0.9, 3)),
    (("TranslateY", 0.9, 9), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.9, 2), ("Solarize", 0.8, 3)),
    (("Equalize", 0.8, 8), ("Invert", 0.1, 3)),
    (("TranslateY", 0.7, 9), ("AutoContrast", 0.9, 1)),
)
"""The 25 sub-policies for CIFAR-10."""

MEAN = (125.0, 123.0, 114.0)
"""Mean colour of CIFAR-10: about 0 after normalisation."""


def augment(
    images: Tensor,
    generator: Generator,
    *,
    policy: bool = True,
    cutout: int = 8,
    padding: int = 4,
    fill: tuple[float, float, float] = MEAN,
) -> Tensor:
    """Crop, flip, AutoAugment and Cutout, in this order.

    Args:
        images: uint8 [N, 3, H, W].
        generator: on the device of the images.
        policy: whether to apply AutoAugment with the CIFAR-10 policy.
        cutout: side of the square that is cut out, in pixels; 0 cuts nothing.
        padding: black pixels around the image that the crop may take in.
        fill: colour, in levels, of what the geometry of AutoAugment leaves empty and of the square of Cutout.

    Returns:
        uint8 [N, 3, H, W].

    Raises:
        ValueError: images of another type or shape.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"augment needs uint8 [N, 3, H, W], not {images.dtype} {list(images.shape)}")
    images = random_flip(random_crop(images, generator, padding), generator)
    if policy:
        for kind, amount in zip(*draw_policy(len(images), generator), strict=True):
            images = apply(images, kind, amount, fill)
    return random_cutout(images, generator, cutout, fill)


def random_crop(images: Tensor, generator: Generator, padding: int) -> Tensor:
    """The images moved by up to `padding` pixels along either axis; black comes in."""
    shift = torch.randint(-padding, padding + 1, (2, len(images)), generator=generator, device=images.device)
    one, zero = torch.ones_like(shift[0]), torch.zeros_like(shift[0])
    return moved(images, torch.stack([one, zero, shift[0], zero, one, shift[1]], 1), (0.0, 0.0, 0.0))


def random_flip(images: Tensor, generator: Generator) -> Tensor:
    """Every image mirrored left to right with probability 1/2."""
    flip = torch.rand(len(images), generator=generator, device=images.device) < 0.5
    return torch.where(flip.view(-1, 1, 1, 1), images.flip(3), images)


def random_cutout(images: Tensor, generator: Generator, size: int, fill: tuple[float, ...] = (0.0,)) -> Tensor:
    """A square of `size` x `size` pixels in one colour; its centre is uniform over the image, its sides are clipped.

    Images are [N, C, H, W] of any type, so it may also come after normalisation (fill 0); fill has C values or one.
    """
    height, width = images.shape[2:]
    rows = _inside(height, len(images), generator, size).view(-1, 1, height, 1)
    columns = _inside(width, len(images), generator, size).view(-1, 1, 1, width)
    return torch.where(rows & columns, colour(fill, images.dtype, images.device), images)


def _inside(side: int, count: int, generator: Generator, size: int) -> Tensor:
    """Which of `side` pixels lie in a random interval of `size` pixels: bool [count, side]."""
    start = torch.randint(side, (count, 1), generator=generator, device=generator.device) - size // 2
    pixel = torch.arange(side, device=generator.device)
    return (pixel >= start) & (pixel < start + size)


def draw_policy(count: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """A random sub-policy for each image.

    Returns:
        Places in OPERATIONS, int64 [2, count], and amounts, float64 [2, count], of the first and second operations.
        An operation that its probability leaves out is the Identity.
    """
    device = generator.device
    kind, probability, start, span, signed = _policy(device)[
        :, :, torch.randint(len(POLICY), (count,), generator=generator, device=device)
    ]
    applied = torch.rand(2, count, generator=generator, device=device) < probability
    negative = (torch.rand(2, count, generator=generator, device=device) < 0.5) & (signed > 0)
    return torch.where(applied, kind, 0).long(), torch.where(negative, start - span, start + span)


@cache
def _policy(device: torch.device) -> Tensor:
    """POLICY as float64 [5, 2, 25]: kind, probability, start, span at the magnitude, signed."""
    rows = [
        [(OPERATIONS.index(name), p, RANGES[name][0], RANGES[name][1] * m / 9, RANGES[name][2]) for name, p, m in pair]
        for pair in POLICY
    ]
    return torch.tensor(rows, dtype=torch.float64).permute(2, 1, 0).contiguous().to(device)
