"""What is done to a sample before a model sees it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from ftbc_onnx.errors import ConfigError
from ftbc_onnx.processor_config import read_processor_config

Array: TypeAlias = npt.NDArray[Any]
Layout: TypeAlias = Literal["NCHW", "NHWC"]
Color: TypeAlias = Literal["rgb", "bgr", "gray"]
Resample: TypeAlias = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]

PIXELS = 1 / 255
"""The scale of pixels, if none is said."""


@dataclass(frozen=True)
class Preprocessing:
    """What is done to a sample before the model sees it: resize, crop, then `(x * scale - mean) / std`.

    `resize` is the length of the shorter side or (height, width), by the filter `resample` (None:
    bilinear; antialiased); `crop` is central, a side or (height, width); these are for image files
    only, as is `color`, the channels the model expects.
    `mean` and `std` hold one number, or one per channel. `layout` is that of arrays given as data
    (None: the model's own). Raises ConfigError for a value that cannot be used.
    """

    resize: int | tuple[int, int] | None = None
    crop: int | tuple[int, int] | None = None
    scale: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    layout: Layout | None = None
    color: Color | None = None
    resample: Resample | None = None

    def __post_init__(self) -> None:
        checked = {
            "resize": _size("resize", self.resize),
            "crop": _size("crop", self.crop),
            "scale": None if self.scale is None else _numbers("scale", [self.scale])[0],
            "mean": None if self.mean is None else _numbers("mean", self.mean),
            "std": None if self.std is None else _numbers("std", self.std),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if self.scale == 0:
            raise ConfigError("scale is 0, which erases every sample: give a nonzero number")
        if self.std is not None and 0 in self.std:
            raise ConfigError(f"std {list(self.std)} holds a 0, which divides samples: give nonzero numbers")
        if self.mean is not None and self.std is not None and len(self.mean) != len(self.std):
            raise ConfigError(f"mean has {len(self.mean)} numbers and std {len(self.std)}: give as many of each")
        for name, known in (("layout", get_args(Layout)), ("color", get_args(Color)), ("resample", get_args(Resample))):
            value = getattr(self, name)
            if value is not None and value not in known:
                raise ConfigError(f"{name} {value!r} is unknown: use one of {', '.join(known)}")

    @property
    def arithmetic(self) -> bool:
        """Whether sample values are changed at all."""
        return not (self.scale is None and self.mean is None and self.std is None)

    def normalise(self, x: Array, axis: int) -> Array:
        """`(x * scale - mean) / std` in float32, mean and std along `axis`; ConfigError if too few or many."""
        count = len(self.mean or self.std or (0.0,))
        if count not in (1, x.shape[axis] if axis else 1):
            raise ConfigError(f"mean and std are given for {count} channels, the samples have {x.shape[axis]}")
        with np.errstate(over="ignore", invalid="ignore"):
            y = x.astype(np.float32)
            if self.scale is not None:
                y *= np.float32(self.scale)
            if self.mean is not None:
                y -= _along(self.mean, y.ndim, axis)
            if self.std is not None:
                y /= _along(self.std, y.ndim, axis)
        return y

    def as_dict(self) -> dict[str, Any]:
        """The values that are set, in JSON types."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items() if v is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """The inverse of `as_dict`; an unknown name is a ConfigError."""
        known = [field.name for field in fields(cls)]
        unknown = [str(name) for name in values if name not in known]
        if unknown:
            raise ConfigError(f"preprocessing {', '.join(unknown)} is unknown: use {', '.join(known)}")
        return cls(**values)

    @classmethod
    def from_preprocessor_config(cls, path: str | os.PathLike[str]) -> Preprocessing:
        """What a Hugging Face `preprocessor_config.json` or a timm `config.json` says (the file, or its folder).

        Sizes in it are of image files: for arrays take `scale`, `mean` and `std` of it only. Raises
        ConfigError for a file that cannot be read, or that asks for something else than this class does.
        """
        return cls(**read_processor_config(path))

    def over(self, other: Preprocessing) -> Preprocessing:
        """What is set here, and of `other` what is not."""
        return replace(other, **{f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None})

    def for_arrays(self, whole: bool) -> Preprocessing:
        """Without what only image files have: `whole` numbers that are changed get the scale of pixels, floats none."""
        scale = self.scale
        if whole and self.arithmetic and scale is None:
            scale = PIXELS
        elif not whole and scale == PIXELS:
            scale = None
        return replace(self, resize=None, crop=None, color=None, resample=None, scale=scale)

    @property
    def for_images(self) -> bool:
        """Whether something is set that only image files have."""
        return any(value is not None for value in (self.resize, self.crop, self.color, self.resample))


def known_preprocessing(value: Preprocessing | None) -> Preprocessing:
    """What was given, or for None one that sets nothing; ConfigError for what is none."""
    if value is not None and not isinstance(value, Preprocessing):
        raise ConfigError(f"preprocessing is {value!r}: it must be an ftbc_onnx.Preprocessing")
    return value or Preprocessing()


def _size(name: str, value: Any) -> int | tuple[int, int] | None:
    """A positive side, or a pair (height, width) of them; ConfigError otherwise."""
    if value is None:
        return None
    pair = isinstance(value, (tuple, list))
    sides = list(value) if pair else [value]
    whole = all(isinstance(side, (int, np.integer)) and not isinstance(side, bool) and side > 0 for side in sides)
    if not whole or len(sides) != (2 if pair else 1):
        raise ConfigError(f"{name} {value!r} cannot be used: give a positive whole number or a pair (height, width)")
    return (int(sides[0]), int(sides[1])) if pair else int(sides[0])


def _numbers(name: str, value: Any) -> tuple[float, ...]:
    """At least one finite number; ConfigError otherwise."""
    try:
        numbers = () if isinstance(value, str) else tuple(float(number) for number in value)
    except (TypeError, ValueError):
        numbers = ()
    if not numbers or not all(math.isfinite(number) for number in numbers):
        raise ConfigError(f"{name} {value!r} cannot be used: finite numbers are expected")
    return numbers


def _along(values: tuple[float, ...], rank: int, axis: int) -> Array:
    """`values` as a float32 array of `rank` axes that broadcasts along `axis`."""
    shape = [1] * rank
    shape[axis] = len(values)
    return np.asarray(values, np.float32).reshape(shape)
