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
    """

    shares: np.ndarray
    zeros: float
    clipped: float
    saturated: int

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "width": WIDTH,
            "shares": [float(share) for share in self.shares],
            "zeros": self.zeros,
            "clipped": self.clipped,
            "saturated_channels": self.saturated,
        }


def distribution(statistics: ActivationStatistics, height: np.ndarray) -> Distribution:
    """A site's activation against its threshold.

    Args:
        statistics: the site's histograms.
        height: theta times gain of every channel, [C], above 0.
    """
    scale = np.asarray(height, dtype=np.float64)[:, None]
    centres, counts = statistics.centres, statistics.counts
    ratio = centres / scale
    place = np.minimum((ratio / WIDTH).astype(np.int64), BINS - 1)
    binned = np.bincount(place.reshape(-1), counts.reshape(-1), BINS)
    values = max(float(counts.sum() + statistics.zeros.sum()), 1.0)
    sent = (counts * centres).sum(axis=1)
    lost = (counts * np.maximum(centres - scale, 0.0)).sum(axis=1)
    share = np.divide(lost, sent, out=np.zeros_like(lost), where=sent > 0)
    return Distribution(
        binned / values,
        float(statistics.zeros.sum()) / values,
        float(lost.sum() / sent.sum()) if sent.sum() > 0 else 0.0,
        int((share > SATURATED).sum()),
    )
