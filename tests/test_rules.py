"""The calibration rules against a plain NumPy loop that re-runs the whole network once per site.

On `networks.residual` every sum is exact in float32, whatever its order, so the biases must agree to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import onnx
import pytest
from helpers import eighths, numbers, ops, parse
from networks import RESIDUAL, THRESHOLDS, WEIGHTS, batches_of, inputs, network_of, plan_of, residual, source_of
from onnx import numpy_helper

from ftbc_onnx.calibrate import calibrate
from ftbc_onnx.errors import ConfigError
from ftbc_onnx.graph.emit.calibration import emit_calibration
from ftbc_onnx.rules import RULES, CalibrationRule, PaperRule, SolveRule, make_rule
from ftbc_onnx.rules.solve import HALVINGS
from ftbc_onnx.runtime import CPU

T = 5
SITES = ("r1", "r2", "r3")
SMALL = np.float32(0)

Arrays = dict[str, np.ndarray]


class Now(NamedTuple):
    """A site at step t: v[t-1] + x[t] [N, C, H, W]; the sum of the mean spikes before, theta and b[t], all [C]."""

    t: int
    drive: np.ndarray
    sent: np.ndarray
    theta: np.ndarray
    bias: np.ndarray

    def mean_spikes(self, bias: np.ndarray) -> np.ndarray:
        """Mean spikes of this step if the bias were `bias`."""
        level = self.theta[:, None, None]
        return mean(np.where(self.drive + bias[:, None, None] >= level, level, SMALL))


Update = Callable[[Now], np.ndarray]


def conv(x: np.ndarray, w: np.ndarray, b: np.ndarray | None = None) -> np.ndarray:
    """A convolution with "same" padding in float64, [N, C, H, W]."""
    k, height, width = w.shape[2], *x.shape[2:]
    padded = np.pad(x.astype(np.float64), [(0, 0), (0, 0), (k // 2, k // 2), (k // 2, k // 2)])
    y = np.zeros((len(x), len(w), height, width))
    for i in range(k):
        for j in range(k):
            y += np.einsum("nchw,oc->nohw", padded[:, :, i : i + height, j : j + width], w[:, :, i, j])
    return (y if b is None else y + b[:, None, None]).astype(np.float32)


def mean(x: np.ndarray) -> np.ndarray:
    """Over everything but the channel axis, [C]."""
    return x.mean(axis=(0, 2, 3), dtype=np.float64).astype(np.float32)


def run_ann(x: np.ndarray, w: Arrays) -> Arrays:
    """The activations of `residual`."""
    a1 = np.maximum(conv(x, w["w1"], w["b1"]), SMALL)
    a2 = np.maximum(conv(a1, w["w2"], w["b2"]), SMALL)
    return {"r1": a1, "r2": a2, "r3": np.maximum(conv(a2, w["w3"]) + a1, SMALL)}


def run_snn(
    x: np.ndarray, w: Arrays, theta: Arrays, bias: Arrays, correct: tuple[str, Update] | None = None
) -> tuple[Arrays, Arrays]:
    """All T steps of the network; at the site to correct, every b[t] is replaced before the site fires for good.

    Returns the mean spikes [T, C] of every site, and the drives v[t-1] + x[t] [T, N, C, H, W].
    """
    membranes: Arrays = {}
    means: dict[str, list[np.ndarray]] = {name: [] for name in SITES}
    drives: dict[str, list[np.ndarray]] = {name: [] for name in SITES}

    def fire(name: str, t: int, current: np.ndarray) -> np.ndarray:
        level = theta[name][:, None, None]
        drive = membranes.get(name, level / np.float32(2)) + current
        if correct is not None and name == correct[0]:
            sent = np.sum(means[name], axis=0, dtype=np.float32) if t else np.zeros_like(theta[name])
            bias[name][t] = correct[1](Now(t, drive, sent, theta[name], bias[name][t]))
        u = drive + bias[name][t][:, None, None]
        s = np.where(u >= level, level, SMALL)
        membranes[name] = u - s
        means[name].append(mean(s))
        drives[name].append(drive)
        return s

    for t in range(len(bias["r1"])):
        s1 = fire("r1", t, conv(x, w["w1"], w["b1"]))
        s2 = fire("r2", t, conv(s1, w["w2"], w["b2"]))
        fire("r3", t, conv(s2, w["w3"]) + s1)
    return {n: np.array(v) for n, v in means.items()}, {n: np.array(v) for n, v in drives.items()}


def paper_update(target: np.ndarray, alpha: float) -> Update:
    """A step against the gap of this very step."""
    return lambda now: now.bias - np.float32(alpha) * (now.mean_spikes(now.bias) - target)


def solve_update(average: np.ndarray) -> Update:
    """12 halvings of [-theta, theta] towards the cumulative mean; no bias unless it comes closer."""

    def update(now: Now) -> np.ndarray:
        target = np.minimum(np.maximum(average * np.float32(now.t + 1) - now.sent, SMALL), now.theta)
        none = middle = np.zeros_like(now.bias)
        reach = now.theta
        for _ in range(12):
            reach = reach / np.float32(2)
            middle = np.where(now.mean_spikes(middle) >= target, middle - reach, middle + reach)
        closer = np.abs(now.mean_spikes(middle) - target) < np.abs(now.mean_spikes(none) - target)
        return np.where(closer, middle, none)

    return update


def naive(
    batches: list[np.ndarray], w: Arrays, theta: Arrays, steps: int, rule: Callable[[np.ndarray], Update]
) -> Arrays:
    """The published loop: for each batch, for each site in order, run everything and correct this site."""
    bias = {name: np.zeros((steps, len(theta[name])), np.float32) for name in SITES}
    for x in batches:
        for site in SITES:
            run_snn(x, w, theta, bias, (site, rule(mean(run_ann(x, w)[site]))))
    return bias


def found(
    rule: CalibrationRule, x: np.ndarray, size: int, steps: int = T, model: onnx.ModelProto | None = None, **kw: Arrays
) -> Arrays:
    """Biases that `calibrate` finds, by site r1, r2, r3."""
    network = network_of(model or residual())
    plan = plan_of(network, kw.get("theta", THRESHOLDS), steps)
    source = source_of(network.view.model, x=x)
    result = calibrate(network, plan, rule, source, batching=batches_of(size), samples=len(x), device=CPU)
    assert (result.samples, result.batches, result.rule) == (len(x), -(-len(x) // size), rule.name)
    return dict(zip(SITES, result.biases.values(), strict=True))


class TestPaper:
    @pytest.mark.parametrize("opset", [13, 18])
    @pytest.mark.parametrize("alpha", [0.4, 0.15])
    def test_is_the_published_loop_bit_for_bit(self, alpha: float, opset: int) -> None:
        x = inputs(12)
        ours = found(PaperRule(alpha), x, 4, model=residual(opset))
        loop = naive([x[:4], x[4:8], x[8:]], WEIGHTS, THRESHOLDS, T, partial(paper_update, alpha=alpha))
        for name in SITES:
            np.testing.assert_array_equal(ours[name], loop[name])
            assert np.count_nonzero(ours[name]) > T  # the comparison is of something

    def test_depends_on_the_order_of_the_batches(self) -> None:
        """Batches accumulate one after the other: they are no average."""
        x = inputs(8)
        forth, back = found(PaperRule(0.4), x, 4), found(PaperRule(0.4), np.concatenate([x[4:], x[:4]]), 4)
        assert any(not np.array_equal(forth[name], back[name]) for name in SITES)

    def test_on_random_numbers_it_is_the_loop_up_to_a_few_spikes(self) -> None:
        weights = {name: numbers(*value.shape, seed=i, scale=0.5) for i, (name, value) in enumerate(WEIGHTS.items())}
        theta = {name: np.full(4, value, np.float32) for name, value in zip(SITES, (1.3, 0.9, 1.7), strict=True)}
        x = numbers(12, 2, 4, 4, seed=9)
        ours = found(PaperRule(0.4), x, 6, model=parse(RESIDUAL, **weights), theta=theta)
        loop = naive([x[:6], x[6:]], weights, theta, T, partial(paper_update, alpha=0.4))
        for name in SITES:
            difference = np.abs(ours[name] - loop[name])
            assert np.mean(difference < 1e-5) >= 0.9
            assert difference.max() < 0.1

    @pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
    def test_alpha_must_be_positive(self, alpha: float) -> None:
        with pytest.raises(ConfigError, match=r"alpha is .*: it must be a positive number"):
            PaperRule(alpha)


class TestSolve:
    def test_is_the_loop_bit_for_bit(self) -> None:
        x = inputs(8, seed=3)
        ours, loop = found(SolveRule(), x, 8), naive([x], WEIGHTS, THRESHOLDS, T, solve_update)
        for name in SITES:
            np.testing.assert_array_equal(ours[name], loop[name])
            assert np.count_nonzero(ours[name]) > T

    def test_running_mean_meets_the_ann_after_every_step(self) -> None:
        """Per channel and step: |mean spikes so far - mean activation| * (t+1) <= theta * (m+1) / M.

        M is the number of neurons of the channel, and m the most of them that start to fire within one last interval
        of the bisection, 2 * theta / 2**12. It holds where the target is in [0, theta] and some bias within theta
        reaches it.
        """
        x = numbers(8, 2, 4, 4, seed=3)
        weights = {name: w + numbers(*w.shape, seed=7, scale=0.01) for name, w in WEIGHTS.items()}
        activations = run_ann(x, weights)
        theta = {name: np.maximum(a.max(axis=(0, 2, 3)), 0.1) for name, a in activations.items()}
        bias = found(SolveRule(), x, 8, steps=8, model=parse(RESIDUAL, **weights), theta=theta)
        means, drives = run_snn(x, weights, theta, {name: value.copy() for name, value in bias.items()})
        held = possible = 0
        for name in SITES:
            sent = np.concatenate([np.zeros((1, 4)), np.cumsum(means[name], axis=0)])
            for t, c in np.ndindex(8, 4):
                level = float(theta[name][c])
                wanted = float(mean(activations[name])[c]) * (t + 1)
                starts = np.sort(level - drives[name][t][:, c].reshape(-1).astype(np.float64))  # biases to fire at
                share = (wanted - sent[t, c]) / level  # of the neurons that should fire
                last = starts[max(int(np.ceil(share * len(starts))) - 1, 0)] if 0 <= share <= 1 else np.inf
                possible += 1
                if last > level or starts[-1] < -level:
                    continue
                ends = np.searchsorted(starts, starts + 2 * level / 2**12, side="right")
                bound = level * (np.max(ends - np.arange(len(starts))) + 1) / len(starts)
                assert abs(sent[t + 1, c] - wanted) <= bound + 1e-5 * level, (name, t, c)
                held += 1
        assert held > 0.6 * possible

    def test_where_many_biases_meet_the_target_the_least_is_found(self) -> None:
        """Of four neurons one has to fire: any bias between 0.031 and 0.219 does that."""
        tick = 2.0**-13
        x = np.array([15 / 32 + 3 * tick, 9 / 32 - 3 * tick, 6 / 32, 2 / 32], np.float32)
        network = network_of(parse("g (float[N] x) => (float[N] y) { y = Relu(x) }"))
        plan = plan_of(network, {"y": np.ones(1)}, 1)
        source = source_of(network.view.model, x=x)
        result = calibrate(network, plan, SolveRule(), source, batching=batches_of(4), samples=4, device=CPU)
        np.testing.assert_array_equal(result.biases["y"], [[1 / 32 - 2 * tick]])

    def test_dead_channels_keep_no_bias(self) -> None:
        bias = found(SolveRule(), inputs(8), 4)
        np.testing.assert_array_equal(bias["r1"][:, 3], 0)  # silent in both networks

    def test_batches_are_averaged_by_their_samples(self) -> None:
        x = inputs(10)
        ours = found(SolveRule(), x, 4)
        parts = [found(SolveRule(), part, len(part)) for part in (x[:4], x[4:8], x[8:])]
        for name in SITES:
            expected = np.average([part[name] for part in parts], axis=0, weights=[4, 4, 2])
            np.testing.assert_allclose(ours[name], expected, rtol=0, atol=1e-6)
            assert not np.array_equal(parts[0][name], parts[1][name])

    def test_same_data_in_same_batches_give_the_same_bytes(self) -> None:
        x = inputs(10)
        once, again = found(SolveRule(), x, 4), found(SolveRule(), x, 4)
        assert all(once[name].tobytes() == again[name].tobytes() for name in SITES)

    def test_one_loop_of_halvings_after_the_first_per_site_in_one_over_the_steps(self) -> None:
        network = network_of(residual())
        model = emit_calibration(network, plan_of(network, THRESHOLDS, T), SolveRule())
        values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        (over_time,) = [node for node in model.graph.node if node.op_type == "Loop"]
        (body,) = [attribute.g for attribute in over_time.attribute if attribute.name == "body"]
        halvings = [int(values[node.input[0]]) for node in body.node if node.op_type == "Loop"]
        assert HALVINGS == 12
        assert int(values[over_time.input[0]]) == T
        assert halvings == [HALVINGS - 1] * len(SITES)

    def test_biases_are_odd_multiples_of_the_last_half_interval(self) -> None:
        bias = found(SolveRule(), inputs(8), 8)
        for name in SITES:
            ticks = bias[name] / THRESHOLDS[name] * 2**12
            assert np.all((ticks % 2 == 1) | (ticks == 0))
            assert np.any(ticks)


class TestRegistry:
    def test_every_name_makes_the_rule_of_that_name(self) -> None:
        for name in RULES:
            rule = make_rule(name, 0.25)
            assert (rule is None) if name == "none" else (rule is not None and rule.name == name)
        assert make_rule("paper", 0.25).alpha == 0.25

    def test_unknown_rule_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="unknown rule 'potential': choose one of solve, paper, none"):
            make_rule("potential", 0.4)


def test_calibration_graph_gives_tables_only() -> None:
    """No activation leaves the runtime."""
    network = network_of(residual())
    model = emit_calibration(network, plan_of(network, THRESHOLDS, T), PaperRule(0.4))
    assert [[d.dim_value for d in value.type.tensor_type.shape.dim] for value in model.graph.output] == [[T, 4]] * 6
    assert ops(model).count("Loop") == 1


def test_exact_network_is_exact() -> None:
    """What the bitwise comparisons rest on: sums of eighths do not depend on their order."""
    x = eighths(4, 2, 4, 4)
    order = np.random.default_rng(0).permutation(2)
    flipped = {**WEIGHTS, "w1": WEIGHTS["w1"][:, order]}
    for name, value in run_ann(x, WEIGHTS).items():
        np.testing.assert_array_equal(run_ann(x[:, order], flipped)[name], value)
