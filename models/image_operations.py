"""The fourteen image operations of AutoAugment, each image of a batch with its own operation and amount.

Images are uint8 [N, 3, H, W] on any device. Nothing waits for the device: all images go through three stages, and an
operation is the identity in the two stages that are not its own.

- Levels: ``y = table[c, x]``, a table of 256 entries per image and channel: Invert, Posterize, Solarize, AutoContrast,
  Equalize, Brightness, Contrast.
- Geometry: ``y[p] = x[floor(A (p + 1/2) + b)]``, or the fill colour outside: Shear, Translate, Rotate. The nearest
  pixel is taken, as `PIL.Image.transform` and `PIL.Image.rotate` do by default, in the same fixed-point arithmetic.
- Blend: ``y = d + factor (x - d)`` with d the grey or the smoothed image: Color, Sharpness.

The levels are those of PIL (ImageOps, ImageEnhance), up to one where PIL rounds in floating point.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

OPERATIONS = (
    "Identity",
    *("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"),
    *("Color", "Contrast", "Brightness", "Sharpness"),
    *("Posterize", "Solarize", "AutoContrast", "Equalize", "Invert"),
)


def apply(images: Tensor, kind: Tensor, amount: Tensor, fill: tuple[float, float, float]) -> Tensor:
    """One operation on each image.

    Args:
        images: uint8 [N, 3, H, W].
        kind: place of the operation in OPERATIONS, int64 [N].
        amount: float64 [N]. Shear: pixels per pixel; Translate: parts of the width or height, positive to the left or
            upwards; Rotate: degrees, counterclockwise about the centre; Color, Contrast, Brightness, Sharpness: factor,
            1 changes nothing; Posterize: bits kept; Solarize: level from which levels are inverted.
        fill: colour of what a geometric operation leaves empty.
    """
    table = _tables(images, kind, amount)
    images = table.gather(2, images.flatten(2).long()).view(images.shape)
    images = moved(images, _matrices(kind, amount, *images.shape[2:]), fill)
    return _blended(images, kind, amount)


def _is(kind: Tensor, name: str) -> Tensor:
    """Which images have this operation: bool [N, 1, 1]."""
    return (kind == OPERATIONS.index(name)).view(-1, 1, 1)


def _grey(images: Tensor) -> Tensor:
    """Luma of ITU-R 601-2 as PIL rounds it: int32 [N, H, W]."""
    red, green, blue = images.int().unbind(1)
    return (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16


def _blend(degenerate: Tensor, values: Tensor, factor: Tensor) -> Tensor:
    """``d + factor (x - d)``, clipped and truncated to uint8."""
    degenerate = degenerate.float()
    return (degenerate + factor.float() * (values - degenerate)).clamp(0, 255).byte()


def _tables(images: Tensor, kind: Tensor, amount: Tensor) -> Tensor:
    """New level of each level 0..255, by image and channel: uint8 [N, 3, 256]."""
    pixels, level = images.shape[2] * images.shape[3], torch.arange(256, dtype=torch.int32, device=images.device)
    amount = amount.view(-1, 1, 1)
    count = torch.zeros(*images.shape[:2], 256, dtype=torch.int32, device=images.device)
    index = images.flatten(2).long()
    count.scatter_add_(2, index, torch.ones((), dtype=torch.int32, device=images.device).expand_as(index))

    low, high = images.flatten(2).aminmax(dim=2, keepdim=True)
    low, high = low.int(), high.int()
    stretched = (255 * (level - low) // (high - low).clamp(min=1)).clamp(0, 255)
    stretched = torch.where(high > low, stretched, level)

    step = (pixels - count.gather(2, high.long())) // 255
    below = count.cumsum(2, dtype=torch.int32) - count
    equalized = ((step // 2 + below) // step.clamp(min=1)).clamp(max=255)
    equalized = torch.where(step > 0, equalized, level)

    mean = ((2 * _grey(images).sum((1, 2)) + pixels) // (2 * pixels)).view(-1, 1, 1)
    scaled = _blend(torch.where(_is(kind, "Contrast"), mean, 0), level, amount)

    bits = amount.round().clamp(0, 8).int()
    table = level.expand_as(count)
    for name, values in {
        "Invert": 255 - level,
        "Posterize": level >> (8 - bits) << (8 - bits),
        "Solarize": torch.where(level < amount, level, 255 - level),
        "AutoContrast": stretched,
        "Equalize": equalized,
        "Brightness": scaled,
        "Contrast": scaled,
    }.items():
        table = torch.where(_is(kind, name), values, table)
    return table.byte()


def _matrices(kind: Tensor, amount: Tensor, height: int, width: int) -> Tensor:
    """Where the pixel at (x, y) comes from: (a x + b y + c, d x + e y + f), float64 [N, 6] of a to f."""

    def where(name: str, values: Tensor) -> Tensor:
        return torch.where(_is(kind, name).flatten(), values, 0)

    angle = where("Rotate", torch.deg2rad(amount))
    cos, sin = angle.cos(), angle.sin()
    x, y = width / 2, height / 2
    return torch.stack(
        [
            cos,
            where("ShearX", amount) - sin,
            where("TranslateX", amount * width) + x - cos * x + sin * y,
            where("ShearY", amount) + sin,
            cos,
            where("TranslateY", amount * height) + y - sin * x - cos * y,
        ],
        1,
    )


def moved(images: Tensor, matrices: Tensor, fill: tuple[float, float, float]) -> Tensor:
    """The nearest pixel of where `matrices` [N, 6] point, else the fill colour; in units of 2^-16 pixel, as in PIL."""
    height, width = images.shape[2:]
    a, b, c, d, e, f = matrices.double().T.view(6, -1, 1, 1)
    column = torch.arange(width, dtype=torch.int32, device=images.device)
    row = torch.arange(height, dtype=torch.int32, device=images.device).view(-1, 1)

    def source(along_x: Tensor, along_y: Tensor, offset: Tensor) -> Tensor:
        along_x, along_y, first = (
            (65536 * value + 0.5).floor().int() for value in (along_x, along_y, offset + (along_x + along_y) / 2)
        )
        return (first + along_x * column + along_y * row) >> 16

    x, y = source(a, b, c), source(d, e, f)
    outside = (x < 0) | (x >= width) | (y < 0) | (y >= height)
    index = torch.where(outside, 0, y * width + x).view(-1, 1, height * width).long()
    moved = images.flatten(2).gather(2, index.expand(*images.shape[:2], -1)).view(images.shape)
    return torch.where(outside.unsqueeze(1), colour(fill, images.dtype, images.device), moved)


def _blended(images: Tensor, kind: Tensor, amount: Tensor) -> Tensor:
    """Color and Sharpness."""
    color, sharpness = _is(kind, "Color").unsqueeze(1), _is(kind, "Sharpness").unsqueeze(1)
    degenerate = torch.where(color, _grey(images).unsqueeze(1), torch.where(sharpness, _smooth(images), images))
    return _blend(degenerate, images, torch.where(color | sharpness, amount.view(-1, 1, 1, 1), 1))


def _smooth(images: Tensor) -> Tensor:
    """Means over 3 x 3 pixels, the middle with weight 5 of 13; the border as it is: int32 [N, 3, H, W]."""
    x = images.int()
    rows = x[:, :, :-2] + x[:, :, 1:-1] + x[:, :, 2:]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * x[:, :, 1:-1, 1:-1]
    inner = (2 * total + 13) // 26  # rounded
    x[:, :, 1:-1, 1:-1] = inner
    return x


@cache
def colour(fill: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The colour as a tensor [C, 1, 1]; kept, so that it goes to the device once."""
    return torch.tensor(fill, dtype=dtype).view(-1, 1, 1).to(device)
