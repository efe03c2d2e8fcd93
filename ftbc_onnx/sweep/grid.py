"""The grid of a sweep: lists of options, and every combination of them that is a conversion of its own."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, TypeVar

from ftbc_onnx.config import RULES, THRESHOLDS, ConvertConfig, check_positive
from ftbc_onnx.errors import ConfigError
from ftbc_onnx.neurons import BINARY, NEURONS

T = TypeVar("T")


@dataclass(frozen=True)
class Point:
    """One conversion; fields as in `ftbc_onnx.config.ConvertConfig`."""

    steps: int
    neuron: str
    levels: int | None
    rule: str
    threshold: str

    def __str__(self) -> str:
        levels = "" if self.levels is None else f" of {self.levels} levels"
        return f"T = {self.steps}, {self.neuron}{levels}, rule {self.rule}, threshold {self.threshold}"

    def config(self, options: dict[str, Any]) -> ConvertConfig:
        """The conversion, with options that all points share.

        Raises:
            ConfigError: they do not go together; the point is named.
        """
        own = sorted(options.keys() & asdict(self).keys())
        if own:
            raise ConfigError(f"'{own[0]}' is a list of the grid: give it there")
        try:
            return ConvertConfig.from_options({**options, **asdict(self)})
        except ConfigError as error:
            raise ConfigError(f"grid point {self}: {error}") from error


@dataclass(frozen=True)
class Grid:
    """Lists of options.

    Attributes:
        steps: T.
        neurons: names, ``auto`` included.
        rules: as in `ftbc_onnx.config.RULES`.
        thresholds: as in `ftbc_onnx.config.THRESHOLDS`.
        levels: of neurons that take a number; empty: their default.
    """

    steps: tuple[int, ...] = (8,)
    neurons: tuple[str, ...] = ("auto",)
    rules: tuple[str, ...] = ("solve",)
    thresholds: tuple[str, ...] = ("auto",)
    levels: tuple[int, ...] = ()

    def points(self) -> list[Point]:
        """Every combination, once: binary neurons take no levels.

        Raises:
            ConfigError: there are levels, and no neuron that takes any.
        """
        if self.levels and set(self.neurons) <= set(BINARY):
            raise ConfigError(f"levels go with a neuron that has more than one, not with {', '.join(self.neurons)}")
        levels: tuple[int | None, ...] = self.levels or (None,)
        every = product(self.steps, self.neurons, levels, self.rules, self.thresholds)
        return list(dict.fromkeys(_point(*one) for one in every))

    @classmethod
    def parse(cls, steps: str, neurons: str, rules: str, thresholds: str, levels: str | None = None) -> Grid:
        """From text, as the command line has it: items separated by commas.

        Raises:
            ConfigError: an item is empty, unknown or there twice; the option is named.
        """
        return cls(
            _numbers("-T", steps),
            _words("--neuron", neurons, ("auto", *NEURONS)),
            _words("--rule", rules, RULES),
            _words("--threshold", thresholds, THRESHOLDS),
            () if levels is None else _numbers("--levels", levels),
        )


def _point(steps: int, neuron: str, levels: int | None, rule: str, threshold: str) -> Point:
    levels = None if levels is None or neuron in BINARY else check_positive("levels", levels)
    return Point(check_positive("T (steps)", steps), neuron, levels, rule, threshold)


def _items(option: str, text: str) -> list[str]:
    items = [item.strip() for item in text.split(",")]
    if not all(items):
        raise ConfigError(f"{option} '{text}' has an empty item: separate the items by single commas")
    return items


def _once(option: str, text: str, items: Sequence[T]) -> tuple[T, ...]:
    twice = next((item for i, item in enumerate(items) if item in items[:i]), None)
    if twice is not None:
        raise ConfigError(f"{option} '{text}' has {twice} twice: give every item once")
    return tuple(items)


def _numbers(option: str, text: str) -> tuple[int, ...]:
    items = _items(option, text)
    wrong = next((item for item in items if not (item.isascii() and item.isdigit() and int(item) > 0)), None)
    if wrong is not None:
        raise ConfigError(f"{option} '{text}': '{wrong}' is no whole number from 1 (a list is 1,2,4,8)")
    return _once(option, text, [int(item) for item in items])


def _words(option: str, text: str, choices: Sequence[str]) -> tuple[str, ...]:
    items = _items(option, text)
    for item in items:
        if item not in choices:
            near = difflib.get_close_matches(item, choices, 1)
            hint = f" (did you mean '{near[0]}'?)" if near else ""
            raise ConfigError(f"{option} '{text}': '{item}' is unknown{hint}: choose from {', '.join(choices)}")
    return _once(option, text, items)
