"""The proof asked of every network: the same ANN after normalisation, a valid standard SNN, and convergence.

Without biases, and with thresholds that nothing exceeds for long, the mean of an integrate-and-fire neuron's spikes
differs from its mean current by no more than its membrane allows, theta / T. So the error of the output should shrink
like 1/T: on a log-log plot of one run's running means, a line of slope -1, give or take what chance does to a
few samples. A conversion that is wrong anywhere has an error that stays.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from helpers import assert_valid, run

from corpus.entry import ROWS, Entry
from ftbc_onnx.graph.emit.unrolled import emit_unrolled
from ftbc_onnx.graph.normalise import normalise
from ftbc_onnx.graph.observe import expose_running_means, expose_tensors, running_mean_name
from ftbc_onnx.graph.sites import Network, find_network
from ftbc_onnx.plan import SpikingPlan
from ftbc_onnx.verify import simulate

Feeds = Mapping[str, np.ndarray]

SHORT = 3
"""Steps of the emission that is checked, run in two batch sizes and compared with the simulation."""

MOST_NODES = 4000
"""Up to this many nodes the long run is one of the emitted model; beyond, of the simulation (they are compared)."""

_MARGIN = 1.1
_FLOOR = 2e-6  # an error below this is rounding


def convert(model: onnx.ModelProto, smooth: str = "spiking") -> Network:
    """The classed network of a model, or the refusals as an error."""
    network = find_network(normalise(model).model, smooth=smooth)
    assert not network.refusals, [str(refusal) for refusal in network.refusals]
    assert network.sites
    return network


def roomy_plan(network: Network, feeds: Feeds, steps: int) -> SpikingPlan:
    """No biases; theta is each channel's largest activation on `feeds` with a margin, no more than a Clip's maximum."""
    found = run(expose_tensors(network.view.model, [site.spikes for site in network.sites]), feeds, optimise=False)
    thresholds = {}
    for site in network.sites:
        size = np.abs(found[site.spikes])
        top = size.max(axis=site.mean_axes, initial=0).reshape(-1) * np.float32(_MARGIN)
        top = np.maximum(top, np.float32(0.1) * top.max() + np.float32(1e-3))  # channels that were never active
        thresholds[site.name] = top if site.ceiling is None else np.minimum(top, np.float32(site.ceiling))
    return SpikingPlan("0" * 64, network.sites, steps, "if", thresholds)


def running_errors(network: Network, plan: SpikingPlan, feeds: Feeds) -> dict[str, np.ndarray]:
    """Mean error of every output after every step, [T], relative to the mean size of the ANN's output."""
    expected = run(network.view.model, feeds, optimise=False)
    emitted = None if len(network.view.nodes) * plan.steps > MOST_NODES else emit_unrolled(network, plan)
    if emitted is None:
        means = simulate(network, plan, feeds)
    else:
        found = run(expose_running_means(emitted.model, emitted.readouts), feeds, optimise=False)
        means = {readout.output: found[running_mean_name(readout.output)] for readout in emitted.readouts}
    errors = {}
    for name, values in means.items():
        target = expected[name].astype(np.float64)
        gap = np.abs(values.astype(np.float64) - target[None]).reshape(plan.steps, -1).mean(1)
        errors[name] = gap / max(np.abs(target).mean(), 1e-6)
    return errors


def slope_of(errors: np.ndarray) -> float:
    """Slope of log error against log t, over the last seven eighths of the run on a logarithmic scale of t."""
    steps = np.unique(np.geomspace(max(2, len(errors) // 16), len(errors), 24).astype(int))
    return float(np.polyfit(np.log(steps), np.log(np.maximum(errors[steps - 1], _FLOOR)), 1)[0])


def assert_converges(network: Network, entry: Entry, feeds: Feeds) -> None:
    """Every output that depends on spikes comes to the ANN's as t grows."""
    plan = roomy_plan(network, feeds, entry.steps)
    table = running_errors(network, plan, feeds)
    assert table, "no output depends on spikes"
    for name, errors in table.items():
        late = errors[-entry.steps // 8 :].mean()
        assert late <= entry.final, f"{name}: error {late:.4f} after {entry.steps} steps, at most {entry.final}"
        if entry.slope is not None and errors[: len(errors) // 2].max() > 10 * _FLOOR:  # else exact from the start
            slope = slope_of(errors)
            assert slope <= entry.slope, f"{name}: slope {slope:.2f}, at most {entry.slope}; last error {late:.4f}"


def assert_standard(model: onnx.ModelProto, inferable: bool = True) -> None:
    """Valid, and nothing but operators of the default domain."""
    if inferable:
        assert_valid(model)
    else:
        onnx.checker.check_model(model)
    assert [imported.domain for imported in model.opset_import] == [""]
    assert not model.functions
    assert {node.domain for node in model.graph.node} == {""}


def assert_same_ann(entry: Entry, model: onnx.ModelProto, network: Network) -> None:
    """What is to be converted computes what the user's model does."""
    feeds = entry.feeds(model)
    before, after = run(model, feeds), run(network.view.model, feeds)
    assert list(before) == list(after)
    for name, value in before.items():
        assert after[name].dtype == value.dtype
        assert after[name].shape == value.shape
        size = np.abs(value.astype(np.float64)).max(initial=1e-3)
        np.testing.assert_allclose(after[name], value, rtol=0, atol=2e-5 * size)


def assert_emission(entry: Entry, model: onnx.ModelProto, network: Network) -> None:
    """A short emission is valid and standard, is its plan to the last bit, and takes one sample or several."""
    rows = entry.fixed_batch or ROWS
    feeds = entry.feeds(model, rows)
    plan = roomy_plan(network, feeds, SHORT)
    emitted = emit_unrolled(network, plan)
    assert_standard(emitted.model, entry.inferable)
    exposed = expose_running_means(emitted.model, emitted.readouts)
    assert_standard(exposed, entry.inferable)
    many = run(exposed, feeds, optimise=False)
    for name, means in simulate(network, plan, feeds).items():
        np.testing.assert_array_equal(many[running_mean_name(name)], means, err_msg=name)
        np.testing.assert_allclose(many[name], means[-1], rtol=1e-5, atol=1e-6)
    if entry.fixed_batch is None:
        assert_batch_of_one(model, exposed, feeds, many)


def assert_batch_of_one(model: onnx.ModelProto, snn: onnx.ModelProto, feeds: Feeds, many: Feeds) -> None:
    """The first sample alone gives what it gives among five, wherever the ANN itself does so."""
    free = {v.name for v in model.graph.input if v.type.tensor_type.shape.dim[:1] and _is_free(v)}
    one = {name: value[:1] if name in free else value for name, value in feeds.items()}
    alone, ann = run(snn, one, optimise=False), run(model, one)
    for name, expected in run(model, feeds).items():
        assert alone[name].shape == ann[name].shape
        if expected.ndim and len(expected) == ROWS and len(ann[name]) == 1:
            if not np.allclose(ann[name], expected[:1], rtol=1e-4, atol=1e-5):
                continue  # a maximum over the batch, say: the ANN's own answer changes with its company
            size = np.abs(many[name].astype(np.float64)).max(initial=1e-3)
            np.testing.assert_allclose(alone[name], many[name][:1], rtol=0, atol=1e-3 * size, err_msg=name)


def _is_free(value: onnx.ValueInfoProto) -> bool:
    return not value.type.tensor_type.shape.dim[0].HasField("dim_value")
