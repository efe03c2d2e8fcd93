"""Thresholds for plain rectifiers, from the ANN's activations on calibration data.

Two passes over the data in small batches: the maximum of every channel, taken in the graph; then a histogram of every
channel between 0 and its maximum (`BINS` bins), from which every method is computed without looking at data again:

* ``max``: theta = the maximum.
* ``percentile``: theta = the p-th percentile over all values, zeros included (a channel whose percentile is 0 although
  it is active takes its maximum).
* ``mse``: theta = the least squared error of the quantiser that T steps with K levels are on a constant input,
  Q(x) = theta/N * clip(floor(x*N/theta + 1/2), 0, N) with N = K*T, over `FRACTIONS` of the maximum.
* ``moments``: the same in closed form, from mean and variance (`moments_threshold`).

At a signed site all this is said of the absolute activation. A Clip's ceiling bounds theta from above. A channel that
was never active takes the mean theta of its tensor's active channels (1 if there is none) and is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ftbc_onnx.batching import Batching, rows_of
from ftbc_onnx.config import ConvertConfig
from ftbc_onnx.data import DataSource
from ftbc_onnx.errors import CalibrationError
from ftbc_onnx.graph.observe import channel_maximum_name, expose_tensors, observe_maxima
from ftbc_onnx.graph.sites import Network
from ftbc_onnx.plan import SpikingSite
from ftbc_onnx.runtime import Device, Session

BINS = 2048
FRACTIONS = np.linspace(0.05, 1.2, 47)

Progress = Callable[[int], None]
"""Called with the number of samples done so far."""

_ELEMENTS = 1 << 26  # activations held at a time, all sites together
_FAINTEST = float(np.finfo(np.float32).tiny) * BINS  # a channel whose maximum is no larger was never active
_CACHED = 1 << 15  # activations counted at a time: what they become on the way stays in a core's cache


@dataclass(frozen=True)
class ActivationStatistics:
    """What is known of a site's activation on the calibration data.

    Attributes:
        maximum: largest value per channel, [C]; 0 where bins would be narrower than float32 can say.
        counts: number of positive values per channel and bin, [C, BINS]; bin i is (i, i+1] * maximum/BINS, roughly.
        zeros: number of values not above 0 per channel, [C].
    """

    maximum: np.ndarray
    counts: np.ndarray
    zeros: np.ndarray

    @property
    def centres(self) -> np.ndarray:
        """Middle of every bin, [C, BINS]."""
        return self.maximum[:, None] * ((np.arange(BINS) + 0.5) / BINS)

    @property
    def dead(self) -> np.ndarray:
        """Channels that were never active, [C] bool."""
        return np.asarray(self.maximum <= 0)

    def pooled(self) -> ActivationStatistics:
        """The same for all channels together, as one channel."""
        top = float(self.maximum.max(initial=0.0))
        if top <= 0:
            return ActivationStatistics(np.zeros(1), np.zeros((1, BINS)), self.zeros.sum(keepdims=True))
        place = np.minimum((self.centres / top * BINS).astype(np.int64), BINS - 1)
        counts = np.bincount(place.reshape(-1), self.counts.reshape(-1), BINS)[None, :]
        return ActivationStatistics(np.array([top]), counts, self.zeros.sum(keepdims=True))


def collect_statistics(
    network: Network,
    source: DataSource,
    samples: int,
    batching: Batching,
    device: Device,
    *,
    progress: Progress = lambda _: None,
) -> dict[str, ActivationStatistics]:
    """Statistics of every site that states no threshold, by name.

    Args:
        network: the normalised ANN.
        source: calibration data.
        samples: samples to use, at most.
        batching: samples per run, at most (fewer where the activations would not fit).
        device: where to run.
        progress: called after each batch with the samples done, over both passes.

    Raises:
        CalibrationError: an activation is not finite.
    """
    sites = [site for site in network.sites if site.threshold is None]
    if not sites:
        return {}
    maxima: dict[str, np.ndarray] = {}
    session = Session(observe_maxima(network.view.model, sites), device)
    names = {site.name: channel_maximum_name(site.name) for site in sites}
    done = 0
    for part in batching.whole(source, samples):
        values = session.run(part.feeds, list(names.values()))
        for site in sites:
            top = values[names[site.name]].astype(np.float64)
            if not np.all(np.isfinite(top)):
                raise _not_finite(site)
            maxima[site.name] = np.maximum(maxima.get(site.name, np.zeros(site.channels)), top)
        done += rows_of(part)
        progress(done)
    maxima = {name: np.where(top > _FAINTEST, top, 0.0) for name, top in maxima.items()}
    session = Session(expose_tensors(network.view.model, [site.spikes for site in sites]), device)
    counts = {site.name: np.zeros((site.channels, BINS)) for site in sites}
    zeros = {site.name: np.zeros(site.channels) for site in sites}
    for part in _fitting(session, source, batching, sites).whole(source, samples):
        values = session.run(part.feeds, [site.spikes for site in sites])
        for site in sites:
            _count(values[site.spikes], site, maxima[site.name], counts[site.name], zeros[site.name])
        done += rows_of(part)
        progress(done)
    return {s.name: ActivationStatistics(maxima[s.name], counts[s.name], zeros[s.name]) for s in sites}


def _not_finite(site: SpikingSite) -> CalibrationError:
    return CalibrationError(
        f"the activation '{site.spikes}' of the ANN is not finite on the calibration data: check the data's scale"
    )


def estimate_thresholds(
    network: Network,
    statistics: Mapping[str, ActivationStatistics],
    config: ConvertConfig,
    levels: int | None = None,
    method: str | None = None,
) -> dict[str, np.ndarray]:
    """Theta of every site, [C] float32: stated by the site, or estimated.

    Args:
        network: the network.
        statistics: of the sites that state nothing.
        config: method (``auto`` starts from ``mse``), percentile, per channel or per tensor.
        levels: N, for ``mse`` and ``moments``; None: T*K of `config`.
        method: instead of the one of `config`.
    """
    count = config.steps * config.neuron_spec.most if levels is None else levels
    wanted = method or ("mse" if config.threshold == "auto" else config.threshold)
    return {s.name: _threshold(s, statistics.get(s.name), config, wanted, count) for s in network.sites}


def _threshold(
    site: SpikingSite, statistics: ActivationStatistics | None, config: ConvertConfig, method: str, levels: int
) -> np.ndarray:
    if site.threshold is not None or statistics is None:
        stated = np.array(site.threshold, dtype=np.float32)
        return np.broadcast_to(stated, (site.channels,))
    used = statistics if config.per_channel else statistics.pooled()
    if method == "max":
        theta = used.maximum
    elif method == "percentile":
        theta = percentile_threshold(used, config.percentile)
    elif method == "moments":
        theta = moments_threshold(used, levels)
    else:
        theta = mse_threshold(used, levels)
    theta = np.broadcast_to(theta, (site.channels,)).copy()
    ceiling = np.inf if site.ceiling is None else site.ceiling
    theta = np.asarray(np.minimum(theta, ceiling))
    active = theta > 0
    theta[~active] = theta[active].mean() if active.any() else min(1.0, ceiling)
    return theta.astype(np.float32)


def percentile_threshold(statistics: ActivationStatistics, percentile: float) -> np.ndarray:
    """The percentile of every channel over all values, [C]; the maximum where that is 0 in an active channel."""
    total = statistics.counts.sum(axis=1) + statistics.zeros
    below = statistics.zeros[:, None] + np.cumsum(statistics.counts, axis=1)
    wanted = total * (percentile / 100)
    bin_index = (below < wanted[:, None]).sum(axis=1)
    before = np.where(
        bin_index > 0, np.take_along_axis(below, np.maximum(bin_index - 1, 0)[:, None], 1)[:, 0], statistics.zeros
    )
    inside = np.take_along_axis(statistics.counts, np.minimum(bin_index, BINS - 1)[:, None], 1)[:, 0]
    fraction = np.clip((wanted - before) / np.maximum(inside, 1), 0, 1)
    value = statistics.maximum * np.minimum(bin_index + fraction, BINS) / BINS
    return np.asarray(np.where(wanted <= statistics.zeros, statistics.maximum, value))


def mse_threshold(statistics: ActivationStatistics, levels: int) -> np.ndarray:
    """The theta of every channel with the least squared error of an N-level quantiser, [C]; 0 for a dead channel.

    In units of its maximum every channel has the same bins and the same candidates, so that what a value in bin i costs
    with candidate j is one matrix for all channels, and their errors are its product with the counts.
    """
    x = (np.arange(BINS) + 0.5) / BINS
    step = FRACTIONS[:, None] / levels
    cost = (step * np.clip(np.floor(x / step + 0.5), 0, levels) - x) ** 2  # [candidates, BINS]
    return np.asarray(statistics.maximum * FRACTIONS[(statistics.counts @ cost.T).argmin(axis=1)])


def moments_threshold(statistics: ActivationStatistics, levels: int) -> np.ndarray:
    """The theta of every channel in closed form, [C]: `mse` for an activation that is exponential where it is positive.

    With b = (mean^2 + variance) / (2 * mean), the mean of the positive values, clipping costs 2*b^2*exp(-theta/b) and
    rounding theta^2/(12*N^2) per positive value, whose sum is least where

        (theta/b) * exp(theta/b) = 12*N^2,      theta = b * W(12*N^2),      W: Lambert's function

    (the argument of Banner et al., arXiv 1810.05723, for one side). At most 1.2 times the maximum.
    """
    total = np.maximum(statistics.counts.sum(axis=1) + statistics.zeros, 1)
    x = statistics.centres
    mean = (statistics.counts * x).sum(axis=1) / total
    square = (statistics.counts * x**2).sum(axis=1) / total
    b = np.divide(square, 2 * mean, out=np.zeros_like(mean), where=mean > 0)
    wanted = np.log(12.0 * levels**2)
    w = wanted
    for _ in range(50):  # w + log(w) = log(12 N^2); a contraction from above, w > 1
        w = wanted - np.log(w)
    return np.asarray(np.minimum(b * w, FRACTIONS[-1] * statistics.maximum))


def _fitting(session: Session, source: DataSource, batching: Batching, sites: list[SpikingSite]) -> Batching:
    """Batches small enough that all activations together fit in memory: those of one sample are measured."""
    if batching.fixed:
        return batching
    first = next(source.batches(1, limit=1))
    elements = sum(value.size for value in session.run(first.feeds, [site.spikes for site in sites]).values())
    return Batching(int(np.clip(_ELEMENTS // max(elements, 1), 1, batching.size)), False)


def _count(a: np.ndarray, site: SpikingSite, maximum: np.ndarray, counts: np.ndarray, zeros: np.ndarray) -> None:
    """Add an activation [B, C, H, W] to the histogram [C, BINS] and the zeros [C] of its site.

    Raises:
        CalibrationError: it has NaN, which the maxima of onnxruntime leave out where it is not the first value.
    """
    rows = (
        a.reshape(1, -1)
        if site.channel_axis is None
        else np.moveaxis(a, site.channel_axis, 0).reshape(site.channels, -1)
    )
    rows = np.abs(rows) if site.signed else rows
    scale = np.divide(BINS, maximum, out=np.zeros_like(maximum), where=maximum > 0).astype(np.float32)[:, None]
    several = max(_CACHED // max(rows.shape[1], 1), 1)
    for first in range(0, site.channels, several):
        part = slice(first, first + several)
        place = rows[part] * scale[part]
        if place.size and np.isnan(place.max()):
            raise _not_finite(site)
        place = np.clip(np.ceil(place, out=place), 0, BINS, out=place).astype(np.intp)
        place += np.arange(len(place))[:, None] * (BINS + 1)
        found = np.bincount(place.reshape(-1), minlength=len(place) * (BINS + 1)).reshape(-1, BINS + 1)
        zeros[part] += found[:, 0]
        counts[part] += found[:, 1:]
