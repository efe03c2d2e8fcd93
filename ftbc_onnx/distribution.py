"""How a site's threshold stands to its activation on the calibration data, from the histograms of `thresholds`.

With a the activation (absolute at signed sites) of channel c and h = theta[c] * gain[c], the most that a spiking neuron
of the channel can send per step on average, everything is said of the ratio r = a/h:

* the histogram of r over all channels, from 0 to `SPAN` in bins of `WIDTH`, values beyond in the last bin, as shares of
  all values (those not above 0 have a share of their own);
* the clipped share of a channel, sum(max(a - h, 0)) / sum(a): what the channel loses however long the run is;
* a *saturated* channel: one whose clipped share is above `SATURATED`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ftbc_onnx.thresholds import BINS as FINE
from ftbc_onnx.thresholds import ActivationStatistics

SPAN, WIDTH = 2.0, 0.05
BINS = round(SPAN / WIDTH)

SATURATED = 0.05
"""Share of its activation that a channel must lose above theta to be called saturated."""


@dataclass(frozen=True)
class Distribution:
    """A site's activation in units of its threshold.

    Attributes:
        shares: of all values, per bin of a/theta, [BINS]; the last bin also holds everything beyond.
        zeros: share of values not above 0.
        clipped: share of the whole site's activation that lies above theta.
        saturated: number of channels that lose more than `SATURATED` of theirs.
        mean: of the activation itself, over all values.
    """

    shares: np.ndarray
    zeros: float
    clipped: float
    saturated: int
    mean: float

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "width": WIDTH,
            "shares": [float(share) for share in self.shares],
            "zeros": self.zeros,
            "clipped": self.clipped,
            "saturated_channels": self.saturated,
            "mean": self.mean,
        }


def distribution(statistics: ActivationStatistics, height: np.ndarray) -> Distribution:
    """A site's activation against its threshold.

    Args:
        statistics: the site's histograms.
        height: theta times gain of every channel, [C], above 0.
    """
    h, top = np.asarray(height, dtype=np.float64), statistics.maximum
    fine = FINE * np.divide(h, top, out=np.ones_like(h), where=top > 0)  # bins of the histogram in one theta, [C]
    before = np.clip(np.ceil(np.arange(BINS) * WIDTH * fine[:, None] - 0.5), 0, FINE).astype(np.int64)  # [C, BINS]
    counted = _sums(statistics.counts)
    total = counted[:, -1]
    binned = np.diff(np.take_along_axis(counted, before, 1), axis=1, append=total[:, None]).sum(axis=0)
    values = max(float(total.sum() + statistics.zeros.sum()), 1.0)
    activation = _sums(statistics.counts * (np.arange(FINE) + 0.5)) * (top / FINE)[:, None]
    sent = activation[:, -1]
    channel, at = np.arange(len(h)), before[:, round(1 / WIDTH)]
    lost = (sent - activation[channel, at]) - h * (total - counted[channel, at])
    share = np.divide(lost, sent, out=np.zeros_like(lost), where=sent > 0)
    return Distribution(
        binned / values,
        float(statistics.zeros.sum()) / values,
        float(lost.sum() / sent.sum()) if sent.sum() > 0 else 0.0,
        int((share > SATURATED).sum()),
        float(sent.sum()) / values,
    )


def _sums(values: np.ndarray) -> np.ndarray:
    """Sums of the first 0, 1, ... bins of every channel, [C, FINE + 1]."""
    return np.concatenate([np.zeros((len(values), 1)), np.cumsum(values, axis=1)], axis=1)
