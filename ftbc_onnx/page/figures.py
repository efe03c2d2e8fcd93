"""The figures of a report, each with its words; all of them in `FIGURES`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from ftbc_onnx.page import series
from ftbc_onnx.page.canvas import GAPS, LIGHT, Draw, numbered, to_png
from ftbc_onnx.summary import has_biases

Report = Mapping[str, Any]

ROW, MANY = 0.17, 80
"""Inches for the row of a site; of more sites than `MANY`, rows share what that many take, and fewer have labels."""

_PLAIN = FuncFormatter(lambda value, _: f"{value:g}")
_FLOOR = 1e-3
"""Percent of all values below which a distribution is drawn as nothing."""


@dataclass(frozen=True)
class Picture:
    """A figure: how high, how to draw it, and what it says to those who do not see it."""

    height: float
    draw: Draw
    label: str


@dataclass(frozen=True)
class Kind:
    """A kind of figure: its name (also of its PNG), title, what to read in it, and why it may be missing."""

    name: str
    title: str
    words: str
    missing: str
    make: Any

    def says(self, report: Report) -> str:
        """Its words, and what is different where layers fire one after another."""
        layered = report["synchronous"] is not None and self.name in ("accuracy", "error", "gaps")
        return f"{self.words} Layer-synchronous: only what is at T has a meaning." if layered else self.words

    def picture(self, report: Report) -> Picture | None:
        """The figure; None if the report does not hold what it shows."""
        made: Picture | None = self.make(report)
        return made


def accuracy(report: Report) -> Picture | None:
    """Accuracy against T."""
    curves = series.accuracy(report)
    if curves is None:
        return None
    return _curves(curves, f"{curves.measure}, %", top=100)


def output_error(report: Report) -> Picture | None:
    """Error of the output against T."""
    curves = series.output_error(report)
    return None if curves is None else _curves(curves, "output error, %")


def _curves(curves: series.Curves, label: str, top: float | None = None) -> Picture:
    steps = np.arange(1, len(curves.calibrated) + 1)
    marker = "o" if len(steps) <= 32 else None
    with_biases = "SNN" if curves.plain is None else "SNN, temporal biases"

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        if curves.ann is not None:
            axes.axhline(curves.ann, color=LIGHT["ann"], linestyle="--", label=f"ANN {curves.ann:.1f} %")
        if curves.plain is not None:
            axes.plot(steps, curves.plain, color=LIGHT["plain"], marker=marker and "s", markersize=3, label="no bias")
        axes.plot(steps, curves.calibrated, color=LIGHT["calibrated"], marker=marker, markersize=3.5, label=with_biases)
        axes.set_xlabel("time steps T")
        axes.set_ylabel(label)
        _step_axis(axes, len(steps))
        if top is None:
            axes.set_ylim(bottom=0)
        else:
            axes.set_ylim(top=min(top + 1.5, axes.get_ylim()[1]))
        axes.grid(axis="y")
        figure.legend(loc="outside upper left", ncols=3, handlelength=1.6, columnspacing=1.2)

    last = [f"{with_biases} {curves.calibrated[-1]:.2f} %"]
    last += [] if curves.plain is None else [f"no bias {curves.plain[-1]:.2f} %"]
    last += [] if curves.ann is None else [f"ANN {curves.ann:.2f} %"]
    return Picture(2.5, draw, f"{curves.measure} against time steps; at T = {len(steps)}: {', '.join(last)}")


def gaps(report: Report) -> Picture | None:
    """Gap per site and step, before and after calibration."""
    after = series.gaps(report)
    if after is None:
        return None
    before = series.gaps(report, "evaluation_without_bias") if has_biases(report) else None
    maps = [("SNN", after)] if before is None else [("no bias", before), ("temporal biases", after)]
    names = series.names(report)
    height = _rows(len(names)) + 1.15
    limits = low, high = _limits(np.concatenate([values for _, values in maps]))

    def draw(figure: Figure) -> None:
        norm = LogNorm(low, high)
        panels = figure.subplots(1, len(maps), sharey=True, squeeze=False)[0]
        for axes, (title, values) in zip(panels, maps, strict=True):
            rows, steps = values.shape
            shown = np.clip(np.nan_to_num(values, nan=np.inf), *limits)
            extent = (0.5, steps + 0.5, rows + 0.5, 0.5)
            axes.imshow(shown, norm=norm, cmap=GAPS, aspect="auto", interpolation="none", extent=extent)
            axes.set_title(title)
            axes.set_xlabel("T")
            axes.xaxis.set_major_locator(FixedLocator(sorted({1, (steps + 1) // 2, steps})))
            axes.spines[:].set_visible(False)
            axes.tick_params(axis="y", length=0)
        _site_axis(panels[0], names)
        bar = figure.colorbar(
            ScalarMappable(norm, GAPS),
            ax=list(panels),
            location="bottom",
            shrink=0.9,
            aspect=30,
            pad=0.12 / height,
            format=_PLAIN,
        )
        if bar.solids is not None:
            bar.solids.set_rasterized(True)
        bar.outline.set_visible(False)
        bar.ax.xaxis.set_major_locator(FixedLocator(_decades(low, high)))
        bar.ax.xaxis.set_minor_locator(NullLocator())
        bar.set_label("gap, % of theta")

    worst = int(np.argmax(np.nan_to_num(after[:, -1])))
    label = f"gap of {len(names)} sites after every step; at T largest at site {worst + 1}, {after[worst, -1]:.2g} %"
    return Picture(height, draw, label)


def activity(report: Report) -> Picture | None:
    """Firing rates, and channels that are dead, silent or saturated."""
    found = series.activity(report)
    if found is None:
        return None
    names = series.names(report)
    at = np.arange(1, len(names) + 1)
    kinds = (("dead", found.dead, "muted"), ("silent", found.silent, "plain"), ("saturated", found.saturated, "bad"))

    def draw(figure: Figure) -> None:
        rates, troubled = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        rates.hlines(at, found.lowest, found.highest, color=LIGHT["grid"], linewidth=3)
        rates.plot(found.rate, at, "o", color=LIGHT["calibrated"], markersize=3.5)
        rates.set_title("firing rate")
        rates.set_xlabel("theta per step")
        rates.set_xlim(left=min(0.0, float(np.nanmin(found.lowest))))
        _site_axis(rates, names)
        left = np.zeros(len(at))
        for name, share, colour in kinds:
            width = np.nan_to_num(share)
            troubled.barh(at, width, left=left, height=0.7, color=LIGHT[colour], label=name)
            left = left + width
        troubled.set_title("channels")
        troubled.set_xlabel("% of channels")
        troubled.tick_params(axis="y", length=0)
        troubled.set_xlim(0, max(5.0, float(left.max()) * 1.1))
        if not left.any():
            troubled.text(0.5, 0.5, "none", transform=troubled.transAxes, ha="center", color=LIGHT["muted"])
        for axes in (rates, troubled):
            axes.grid(axis="x")
            axes.set_axisbelow(True)
            axes.xaxis.set_major_locator(MaxNLocator(3))
            axes.xaxis.set_major_formatter(_PLAIN)
        figure.legend(
            handles=troubled.get_legend_handles_labels()[0], loc="outside lower right", ncols=3, handlelength=1
        )

    label = f"firing rates of {len(names)} sites, mean {found.rate.mean():.3f}, and channels dead, silent or saturated"
    return Picture(_rows(len(names)) + 1.05, draw, label)


def thresholds(report: Report) -> Picture | None:
    """Every site's activation in units of its threshold."""
    found = series.distributions(report)
    if found is None:
        return None
    names = series.names(report)
    edges = found.edges
    decades = np.log10(np.maximum(found.shares, _FLOOR) / _FLOOR) / np.log10(100 / _FLOOR)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for row, share in enumerate(decades, 1):
            base, heights = row + 0.5, np.append(share, share[-1])
            for part, colour in ((edges <= 1 + 1e-9, "calibrated"), (edges >= 1 - 1e-9, "bad")):
                top = base - 0.95 * heights[part]
                axes.fill_between(edges[part], base, top, step="post", color=LIGHT[colour], linewidth=0)
            clipped = found.clipped[row - 1]
            text = "stated" if np.isnan(clipped) else f"{clipped:.1f}"
            axes.text(edges[-1] + 0.32, row, text, ha="right", va="center", fontsize=7.5)
        axes.axvline(1, color=LIGHT["ink"], linewidth=1)
        axes.set_xlim(edges[0], edges[-1] + 0.35)
        axes.xaxis.set_major_locator(FixedLocator([0, 0.5, 1, 1.5, 2]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: "theta" if value == 1 else f"{value:g}"))
        axes.set_xlabel("activation / theta")
        axes.set_title("distribution (log scale)", loc="left")
        axes.set_title("clipped, %", loc="right")
        _site_axis(axes, names)

    worst = 0.0 if np.isnan(found.clipped).all() else float(np.nanmax(found.clipped))
    label = f"activations of {len(names)} sites against their thresholds; at most {worst:.1f} % of a site is clipped"
    return Picture(_rows(len(names)) + 0.8, draw, label)


FIGURES: Sequence[Kind] = (
    Kind(
        "accuracy",
        "Accuracy against T",
        "If the network is stopped after T steps. The dashed line is the ANN.",
        "The output is no row of scores, or nothing was evaluated.",
        accuracy,
    ),
    Kind(
        "error",
        "Error of the output",
        "Mean |SNN - ANN| over mean |ANN|. It should fall about as 1/T; where it turns flat, more steps do not help.",
        "It takes the ANN beside the SNN.",
        output_error,
    ),
    Kind(
        "gaps",
        "Gap per site and step",
        "|mean spikes up to T - mean activation|, mean over channels, in percent of theta. Dark is good. "
        "Look for the row from which on rows stay bright.",
        "It takes the ANN beside the SNN.",
        gaps,
    ),
    Kind(
        "activity",
        "What the sites do",
        "Dot: mean firing rate, bar: lowest to highest channel. Dead: never active in calibration; silent: the ANN is "
        "active, the SNN sent nothing; saturated: more than 5 % of the activation lies above theta.",
        "Nothing was evaluated.",
        activity,
    ),
    Kind(
        "thresholds",
        "Threshold against activation",
        "Calibration data; at signed sites absolute values. What lies right of theta is clipped, whatever T is; "
        "a theta far right of all values wastes levels.",
        "Every threshold is stated by the network (QCFS).",
        thresholds,
    ),
)


def pictures(report: Report) -> Iterator[tuple[Kind, Picture | None]]:
    """Every kind of figure with its picture."""
    return ((kind, kind.picture(report)) for kind in FIGURES)


def save_all(report: Report, folder: Path) -> list[Path]:
    """Every figure that there is as a PNG in a folder."""
    written = []
    for kind, picture in pictures(report):
        if picture is not None:
            written.append(folder / f"{kind.name}.png")
            to_png(picture.draw, picture.height, written[-1])
    return written


def _rows(sites: int) -> float:
    return ROW * max(min(sites, MANY), 3)


def _site_axis(axes: Axes, names: Sequence[str]) -> None:
    """Sites from top to bottom, labelled; of very many, every few."""
    every = -(-len(names) // MANY)
    labels = numbered(names)
    axes.set_ylim(len(names) + 0.5, 0.5)
    axes.set_yticks(range(1, len(names) + 1, every), labels[::every])
    axes.tick_params(axis="y", length=0)


def _step_axis(axes: Axes, steps: int) -> None:
    """Whole numbers; powers of two on a logarithmic axis for a long run."""
    if steps > 32:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator([2**i for i in range(steps.bit_length()) if 2**i <= steps]))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(_PLAIN)


def _limits(values: np.ndarray) -> tuple[float, float]:
    """The range of colours for gaps: at most three decades, at least one, up to the largest."""
    positive = values[np.isfinite(values) & (values > 0)]
    if not positive.size:
        return 1e-3, 1.0
    top = float(positive.max())
    return min(max(float(positive.min()), top / 1000), top / 10), top


def _decades(low: float, high: float) -> list[float]:
    return [10.0**i for i in range(int(np.ceil(np.log10(low))), int(np.floor(np.log10(high))) + 1)]
