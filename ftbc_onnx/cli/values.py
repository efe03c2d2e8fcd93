"""Values of options, from text: numbers, sizes, preprocessing. Each raises `ConfigError` that names its option."""

from __future__ import annotations

from typing import Any

from ftbc_onnx.errors import ConfigError
from ftbc_onnx.images import Preprocessing


def preprocessing_of(options: dict[str, Any]) -> Preprocessing | None:
    """Take the options of preprocessing out of `options`; None if none was given."""
    given = {name: options.pop(name) for name in ("mean", "std", "scale", "resize", "crop", "layout", "color")}
    if all(value is None for value in given.values()):
        return None
    return Preprocessing(
        resize=_size("--resize", given["resize"]),
        crop=_size("--crop", given["crop"]),
        scale=None if given["scale"] is None else _number("--scale", given["scale"]),
        mean=_numbers("--mean", given["mean"]),
        std=_numbers("--std", given["std"]),
        layout=given["layout"],
        color=given["color"],
    )


def _number(option: str, text: str) -> float:
    try:
        above, _, below = text.partition("/")
        return float(above) / (float(below) if below else 1.0)
    except (ValueError, ZeroDivisionError):
        raise ConfigError(f"{option} '{text}' is no number (1/255 and 0.0039 are)") from None


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    return None if text is None else tuple(_number(option, part.strip()) for part in text.split(","))


def _size(option: str, text: str | None) -> int | tuple[int, int] | None:
    if text is None:
        return None
    try:
        sides = [int(part) for part in text.lower().split("x")]
    except ValueError:
        sides = []
    if len(sides) == 1:
        return sides[0]
    if len(sides) == 2:
        return sides[0], sides[1]
    raise ConfigError(f"{option} '{text}' is no size: give a side (224) or HEIGHTxWIDTH (224x192)")
