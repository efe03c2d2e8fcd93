"""Values of options, from text: numbers, sizes, preprocessing. Each raises `ConfigError` that names its option."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ftbc_onnx.errors import ConfigError
from ftbc_onnx.preprocessing import Preprocessing


def preprocessing_of(options: dict[str, Any]) -> Preprocessing | None:
    """Take the options of preprocessing out of `options`; None if none was given."""
    file = options.pop("preprocessor")
    names = ("mean", "std", "scale", "resize", "crop", "resample", "layout", "color")
    given = {name: value for name in names if (value := options.pop(name)) is not None}
    if file is None and not given:
        return None
    for name, read in _READ.items():
        if name in given:
            given[name] = read(f"--{name}", given[name])
    return replace(Preprocessing() if file is None else Preprocessing.from_preprocessor_config(file), **given)


def labelled(data: str | None, labels: Path | None) -> Any:
    """Evaluation data, with the labels of a file if one is given."""
    if labels is None:
        return data
    if data is None:
        raise ConfigError(f"--labels '{labels}' are those of --eval-data, which is not given")
    return data, labels


def refuse_without(names: Sequence[str], there: bool, needed: str) -> None:
    """Refuse options on the command line that would do nothing, since what they go with is not `there`."""
    context = click.get_current_context()
    for name in names:
        if not there and context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            raise ConfigError(f"--{name.replace('_', '-')} goes with {needed}")


def _number(option: str, text: str) -> float:
    try:
        above, _, below = text.partition("/")
        return float(above) / (float(below) if below else 1.0)
    except (ValueError, ZeroDivisionError):
        raise ConfigError(f"{option} '{text}' is no number (1/255 and 0.0039 are)") from None


def _numbers(option: str, text: str) -> tuple[float, ...]:
    return tuple(_number(option, part.strip()) for part in text.split(","))


def _size(option: str, text: str) -> int | tuple[int, int]:
    try:
        sides = [int(part) for part in text.lower().split("x")]
    except ValueError:
        sides = []
    if len(sides) == 1:
        return sides[0]
    if len(sides) == 2:
        return sides[0], sides[1]
    raise ConfigError(f"{option} '{text}' is no size: give a side (224) or HEIGHTxWIDTH (224x192)")


_READ: dict[str, Callable[[str, str], Any]] = {
    "resize": _size,
    "crop": _size,
    "scale": _number,
    "mean": _numbers,
    "std": _numbers,
}
"""Options of preprocessing whose text is more than a name."""
