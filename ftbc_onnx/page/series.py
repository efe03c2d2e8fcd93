"""What the figures show, taken from a report: plain arrays, nothing drawn.

Rows are sites in the plan's order, columns time steps. A number that was not measured is NaN.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ftbc_onnx.summary import has_biases

Report = Mapping[str, Any]

PERCENT = 100.0


@dataclass(frozen=True)
class Curves:
    """A measure after every step, in percent: `calibrated`, without biases (`plain`), and the ANN's own; or None."""

    measure: str
    calibrated: np.ndarray
    plain: np.ndarray | None
    ann: float | None


def accuracy(report: Report) -> Curves | None:
    """Accuracy, or agreement with the ANN where there are no labels; None if the network does not classify."""
    evaluation = report["evaluation"]
    if evaluation is None:
        return None
    if evaluation["accuracy"] is not None:
        return _curves(report, "accuracy", "accuracy", evaluation["ann_accuracy"])
    if evaluation["agreement"] is not None:
        return _curves(report, "agreement", "agrees with the ANN", None)
    return None


def output_error(report: Report) -> Curves | None:
    """Mean |SNN - ANN| of the output over mean |ANN|."""
    evaluation = report["evaluation"]
    if evaluation is None or evaluation["output_gap"] is None:
        return None
    return _curves(report, "output_gap", "output error", None, PERCENT)


def _curves(report: Report, key: str, measure: str, ann: float | None, scale: float = 1.0) -> Curves:
    plain = report["evaluation_without_bias"][key] if has_biases(report) else None
    return Curves(
        measure,
        np.asarray(report["evaluation"][key], dtype=float) * scale,
        None if plain is None else np.asarray(plain, dtype=float) * scale,
        ann,
    )


def names(report: Report) -> list[str]:
    """Names of the sites."""
    return [site["name"] for site in report["sites"]]


def gaps(report: Report, key: str = "evaluation") -> np.ndarray | None:
    """Gap of every site after every step in percent of theta, [sites, T]; None if it was not measured."""
    evaluation = report[key]
    if evaluation is None or not report["sites"]:
        return None
    rows = [evaluation["sites"][name]["gap_in_theta"] for name in names(report)]
    return None if any(row is None for row in rows) else np.asarray(rows, dtype=float) * PERCENT


@dataclass(frozen=True)
class Activity:
    """Firing rates in units of theta per step, and troubled channels in percent of all, one row per site, [sites]."""

    rate: np.ndarray
    lowest: np.ndarray
    highest: np.ndarray
    dead: np.ndarray
    silent: np.ndarray
    saturated: np.ndarray


def activity(report: Report) -> Activity | None:
    """What the sites do; None if nothing was evaluated."""
    evaluation = report["evaluation"]
    if evaluation is None or not report["sites"]:
        return None
    measured = [evaluation["sites"][name] for name in names(report)]
    channels = np.array([site["channels"] for site in report["sites"]], dtype=float)
    ranges = np.array([site["rate_range"] for site in measured], dtype=float)
    saturated = [(site["activation"] or {}).get("saturated_channels") for site in report["sites"]]
    return Activity(
        np.array([site["rate"] for site in measured], dtype=float),
        ranges[:, 0],
        ranges[:, 1],
        _floats([site["dead_channels"] for site in report["sites"]]) / channels * PERCENT,
        _floats([site["silent_channels"] for site in measured]) / channels * PERCENT,
        _floats(saturated) / channels * PERCENT,
    )


@dataclass(frozen=True)
class Distributions:
    """Activations in units of theta: `shares` of all values, [sites, bins], and `clipped`, [sites], both in percent."""

    edges: np.ndarray
    shares: np.ndarray
    clipped: np.ndarray


def distributions(report: Report) -> Distributions | None:
    """Of the sites whose thresholds were estimated (the others are rows of NaN); None if there is no such site."""
    known = [site["activation"] for site in report["sites"]]
    first = next((activation for activation in known if activation is not None), None)
    if first is None:
        return None
    bins = len(first["shares"])
    shares = [[np.nan] * bins if a is None else a["shares"] for a in known]
    clipped = [np.nan if a is None else a["clipped"] for a in known]
    edges = np.arange(bins + 1) * first["width"]
    return Distributions(edges, np.asarray(shares, dtype=float) * PERCENT, np.asarray(clipped, dtype=float) * PERCENT)


def _floats(values: list[int | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=float)
