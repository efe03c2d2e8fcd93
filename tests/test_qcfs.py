"""Finding QCFS chains: y = theta/L * clip(floor(x*L/theta + 1/2), 0, L), however it was written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import OPSETS, parse, run

from ftbc_onnx.graph.normalise import normalise
from ftbc_onnx.graph.qcfs import find_qcfs
from ftbc_onnx.graph.sites import find_network
from ftbc_onnx.graph.view import GraphView
from ftbc_onnx.plan import SpikingSite

MODELS = Path(__file__).parents[1] / "models"
THETA, L = 1.5, 4
NUMBERS = {
    "theta": np.float32(THETA),
    "step": np.float32(THETA / L),
    "per_step": np.float32(L / THETA),
    "inverse": np.float32(1 / THETA),
    "levels": np.float32(L),
    "fraction": np.float32(1 / L),
    "half": np.float32(0.5),
    "minus_half": np.float32(-0.5),
    "zero": np.float32(0),
    "one": np.float32(1),
}


def qcfs(x: np.ndarray, theta: np.ndarray | float = THETA, levels: int = L) -> np.ndarray:
    """The equation."""
    theta = np.asarray(theta, np.float64)
    return theta / levels * np.clip(np.floor(x * levels / theta + 0.5), 0, levels)


def model_of(
    body: str, opset: int = 17, dims: str = "N,3,4,5", constants: dict[str, np.ndarray] | None = None
) -> onnx.ModelProto:
    """Read `c` (the current), make `q`; a layer on either side keeps the chain away from the interface."""
    text = f"g (float[{dims}] x) => (float[{dims}] y) {{ c = Neg(x) {body} y = Neg(q) }}"
    return normalise(parse(text, opset=opset, **(NUMBERS if constants is None else constants))).model


def inputs(*shape: int, theta: float = THETA, levels: int = L) -> np.ndarray:
    """Currents that stay clear of the boundaries between levels."""
    rng = np.random.default_rng(0)
    level = rng.integers(-3, levels + 4, shape) + rng.uniform(-0.4, 0.4, shape)
    return (level * theta / levels).astype(np.float32)


def sole_site(body: str, **options) -> SpikingSite:
    network = find_network(model_of(body, **options))
    assert network.refusals == ()
    (site,) = network.sites
    return site


CHAINS = {
    "clip before (torch)": (
        "a = Div(c, theta) b = Clip(a, zero, one) d = Mul(b, levels) e = Add(d, half) "
        "f = Floor(e) h = Div(f, levels) q = Mul(h, theta)"
    ),
    "clip after": "a = Div(c, step) e = Add(a, half) f = Floor(e) b = Clip(f, zero, levels) q = Mul(b, step)",
    "clip after scaling back": (
        "a = Mul(c, per_step) e = Add(a, half) f = Floor(e) h = Mul(f, step) q = Clip(h, zero, theta)"
    ),
    "clip of the current": "b = Clip(c, zero, theta) a = Div(b, step) e = Add(a, half) f = Floor(e) q = Mul(f, step)",
    "clip between the sum and the rounding": (
        "a = Mul(c, per_step) e = Add(a, half) b = Clip(e, zero, levels) f = Floor(b) q = Mul(f, step)"
    ),
    "constants first": "a = Mul(per_step, c) e = Add(half, a) f = Floor(e) b = Clip(f, zero, levels) q = Mul(step, b)",
    "division throughout": (
        "a = Div(c, theta) d = Div(a, fraction) e = Add(d, half) f = Floor(e) h = Div(f, levels) "
        "b = Clip(h, zero, one) q = Div(b, inverse)"
    ),
    "subtract minus one half": (
        "a = Mul(c, per_step) e = Sub(a, minus_half) f = Floor(e) b = Clip(f, zero, levels) q = Mul(b, step)"
    ),
    "max and min": (
        "a = Mul(c, per_step) e = Add(a, half) f = Floor(e) m = Max(f, zero) b = Min(m, levels) q = Mul(b, step)"
    ),
    "relu and min": (
        "r = Relu(c) a = Mul(r, per_step) e = Add(a, half) f = Floor(e) b = Min(f, levels) q = Mul(b, step)"
    ),
    "min before, max after": (
        "m = Min(c, theta) a = Mul(m, per_step) e = Add(a, half) f = Floor(e) b = Max(zero, f) q = Mul(b, step)"
    ),
    "relu after": "m = Min(c, theta) a = Mul(m, per_step) e = Add(a, half) f = Floor(e) h = Mul(f, step) q = Relu(h)",
    "round": (
        "a = Div(c, theta) b = Clip(a, zero, one) d = Mul(b, levels) f = Round(d) h = Div(f, levels) q = Mul(h, theta)"
    ),
    "round, clip after": "a = Mul(c, per_step) f = Round(a) b = Clip(f, zero, levels) q = Mul(b, step)",
    "clipped twice": (
        "r = Relu(c) a = Mul(r, per_step) e = Add(a, half) f = Floor(e) "
        "b = Clip(f, zero, levels) h = Mul(b, step) q = Min(h, theta)"
    ),
}


@pytest.mark.parametrize("name", CHAINS)
def test_chain_is_found(name):
    model = model_of(CHAINS[name])
    (match,) = find_qcfs(GraphView(model))
    assert (match.current, match.output) == ("c", "q")
    assert match.levels == L
    np.testing.assert_allclose(match.threshold, [THETA], rtol=1e-6)
    assert [node.output[0] for node in match.nodes][-1] == "q"
    assert len(match.nodes) == len(model.graph.node) - 2
    x = inputs(2, 3, 4, 5)
    np.testing.assert_allclose(run(model, {"x": -x})["y"], -qcfs(x), atol=1e-5)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("constants", ["initializers", "nodes"])
def test_site_states_theta_and_levels(opset, constants):
    body = CHAINS["clip before (torch)"]
    if constants == "nodes":
        made = " ".join(f"{name} = Constant <value = float {{{value:.9g}}}> ()" for name, value in NUMBERS.items())
        site = sole_site(made + body, opset=opset, constants={})
    else:
        site = sole_site(body, opset=opset)
    assert (site.op_type, site.current, site.spikes) == ("QCFS", "c", "q")
    assert (site.levels, site.ceiling) == (L, None)
    assert site.threshold == (np.float32(THETA),)
    assert len(site.nodes) == 7


@pytest.mark.parametrize("levels", [1, 2, 3, 8, 15, 255])
@pytest.mark.parametrize("theta", [1e-3, 0.7, 123.0])
def test_any_theta_and_levels(levels, theta):
    constants = {
        "theta": np.float32(theta),
        "levels": np.float32(levels),
        **{k: NUMBERS[k] for k in ("zero", "one", "half")},
    }
    site = sole_site(CHAINS["clip before (torch)"], constants=constants)
    assert site.levels == levels
    np.testing.assert_allclose(site.threshold, [theta], rtol=1e-6)


# per channel


PER_CHANNEL = (
    "a = Div(c, t) b = Clip(a, zero, one) d = Mul(b, levels) e = Add(d, half) f = Floor(e) "
    "h = Div(f, levels) q = Mul(h, t)"
)


def with_thetas(*shape: int) -> dict[str, np.ndarray]:
    count = int(np.prod(shape))
    return {**NUMBERS, "t": np.linspace(0.5, 2, count).reshape(shape).astype(np.float32)}


@pytest.mark.parametrize("shape", [(3, 1, 1), (1, 3, 1, 1)])
@pytest.mark.parametrize("body", [PER_CHANNEL, PER_CHANNEL.replace("c, t", "c, t").replace("Mul(h, t)", "Mul(t, h)")])
def test_theta_per_channel(shape, body):
    constants = with_thetas(*shape)
    site = sole_site(body, constants=constants)
    np.testing.assert_allclose(site.threshold, constants["t"].reshape(-1), rtol=1e-6)
    assert (site.channels, site.channel_axis, site.levels) == (3, 1, L)


def test_theta_per_feature():
    constants = with_thetas(5)
    text = f"g (float[N,2] x) => (float[N,5] y) {{ c = MatMul(x, w) {PER_CHANNEL} y = Neg(q) }}"
    network = find_network(normalise(parse(text, w=np.ones((2, 5), np.float32), **constants)).model)
    (site,) = network.sites
    np.testing.assert_allclose(site.threshold, constants["t"], rtol=1e-6)


def test_thetas_that_are_all_the_same_are_one():
    site = sole_site(PER_CHANNEL, constants={**NUMBERS, "t": np.full((3, 1, 1), 2, np.float32)})
    assert site.threshold == (2.0,)


@pytest.mark.parametrize(
    ("shape", "dims"),
    [
        ((4, 1), "N,3,4,5"),  # per row
        ((5,), "N,3,4,5"),  # per column
        ((3, 1), "N,3,3,5"),  # per row, and as many rows as channels
        ((3,), "N,3,4,3"),  # per column, and as many columns as channels
        ((3, 4, 1), "N,3,4,5"),  # per channel and row
    ],
)
def test_theta_along_another_axis_stays_outside(shape, dims):
    site = sole_site(PER_CHANNEL, dims=dims, constants=with_thetas(*shape))
    assert (site.op_type, site.current, site.spikes, site.threshold) == ("QCFS", "a", "h", (1.0,))


def test_thetas_along_different_axes_are_not_one_theta():
    constants = with_thetas(3, 1, 1)
    constants["u"] = constants["t"].reshape(3)
    body = PER_CHANNEL.replace("Mul(h, t)", "Mul(h, u)")
    assert sole_site(body, dims="N,3,3,3", constants=constants).threshold == (1.0,)


# what belongs to the chain and what does not


def test_widest_chain_is_taken():
    # without the outer Div and Mul it would be a QCFS with theta = 1
    (match,) = find_qcfs(GraphView(model_of(CHAINS["clip before (torch)"])))
    np.testing.assert_allclose(match.threshold, [THETA])


@pytest.mark.parametrize("scale", [[0.5, 2, 3], [2, 2, 2], [-1, 1, 2]])
def test_batchnorm_before_it_stays_outside(scale):
    constants = {
        **NUMBERS,
        "gain": np.reshape(scale, (3, 1, 1)).astype(np.float32),
        "shift": np.array([[[0.1]], [[0.2]], [[-0.3]]], np.float32),
    }
    body = CHAINS["clip before (torch)"].replace("Div(c, theta)", "Div(n, theta)")
    site = sole_site(f"m = Mul(c, gain) n = Add(m, shift) {body}", constants=constants)
    assert (site.current, site.spikes) == ("n", "q")
    assert site.threshold == (np.float32(THETA),)


def test_product_after_it_stays_outside():
    body = CHAINS["clip before (torch)"].replace("q = Mul(h, theta)", "p = Mul(h, theta) q = Mul(p, levels)")
    site = sole_site(body)
    assert (site.current, site.spikes) == ("c", "p")


@pytest.mark.parametrize("seen", ["a", "b", "d", "e", "f", "h"])
def test_intermediate_tensor_read_elsewhere(seen):
    # what is left between the readers may still be a narrower QCFS, of the numbers that it computes
    model = model_of(
        CHAINS["clip before (torch)"].replace("q = Mul(h, theta)", f"p = Mul(h, theta) z = Neg({seen}) q = Add(p, z)")
    )
    matches = find_qcfs(GraphView(model))
    if seen in ("a", "h"):
        # seen above or below the core: theta = 1 remains; its core reads a, or its end is h
        (match,) = matches
        assert match.threshold == (1.0,)
        assert (match.current, match.output) == ("a", "h")
    else:
        assert matches == []


def test_intermediate_tensor_that_is_an_output():
    text = f"g (float[N,3] x) => (float[N,3] y, float[N,3] e) {{ c = Neg(x) {CHAINS['clip after']} y = Neg(q) }}"
    assert find_qcfs(GraphView(parse(text, **NUMBERS))) == []


@pytest.mark.parametrize("end", ["x", "c"])
def test_chain_at_the_interface(end):
    body = CHAINS["clip before (torch)"].replace("Div(c", f"Div({end}")
    text = f"g (float[N,3] x) => (float[N,3] q) {{ c = Neg(x) {body} }}"
    (match,) = find_qcfs(GraphView(parse(text, **NUMBERS)))
    assert (match.current, match.output) == (end, "q")


def test_the_current_may_be_read_elsewhere():
    body = CHAINS["clip before (torch)"].replace("q = Mul(h, theta)", "p = Mul(h, theta) q = Add(p, c)")
    assert sole_site(body).current == "c"


NOT_QCFS = {
    "no half": "a = Div(c, step) f = Floor(a) b = Clip(f, zero, levels) q = Mul(b, step)",
    "a whole": "a = Div(c, step) e = Add(a, one) f = Floor(e) b = Clip(f, zero, levels) q = Mul(b, step)",
    "minus a half": "a = Div(c, step) e = Sub(a, half) f = Floor(e) b = Clip(f, zero, levels) q = Mul(b, step)",
    "a half and round": "a = Div(c, step) e = Add(a, half) f = Round(e) b = Clip(f, zero, levels) q = Mul(b, step)",
    "one half minus": "a = Div(c, step) e = Sub(half, a) f = Floor(e) b = Clip(f, zero, levels) q = Mul(b, step)",
    "shifted afterwards": (
        "a = Div(c, step) e = Add(a, half) f = Floor(e) b = Clip(f, zero, levels) h = Add(b, half) q = Mul(h, step)"
    ),
    "not clipped": "a = Div(c, step) e = Add(a, half) f = Floor(e) q = Mul(f, step)",
    "not clipped above": "r = Relu(c) a = Div(r, step) e = Add(a, half) f = Floor(e) q = Mul(f, step)",
    "not clipped below": "r = Min(c, theta) a = Div(r, step) e = Add(a, half) f = Floor(e) q = Mul(f, step)",
    "clipped from below zero": (
        "a = Div(c, step) e = Add(a, half) f = Floor(e) b = Clip(f, minus_one, levels) q = Mul(b, step)"
    ),
    "clipped from one": "a = Div(c, step) e = Add(a, half) f = Floor(e) b = Clip(f, one, levels) q = Mul(b, step)",
    "no level": "a = Div(c, step) e = Add(a, half) f = Floor(e) b = Clip(f, zero, zero) q = Mul(b, step)",
    "other scales on the sides": (
        "a = Div(c, step) e = Add(a, half) f = Floor(e) b = Clip(f, zero, levels) q = Mul(b, theta)"
    ),
    "negative scale": (
        "a = Div(c, minus_step) e = Add(a, half) f = Floor(e) b = Clip(f, zero, levels) q = Mul(b, minus_step)"
    ),
    "ceiling": "a = Div(c, step) e = Add(a, half) f = Ceil(e) b = Clip(f, zero, levels) q = Mul(b, step)",
    "division by a tensor": "a = Div(c, c) e = Add(a, half) f = Floor(e) b = Clip(f, zero, levels) q = Mul(b, step)",
    "divided by zero": "a = Div(c, zero) e = Add(a, half) f = Floor(e) b = Clip(f, zero, levels) q = Mul(b, step)",
    "one over": "a = Div(per_step, c) e = Add(a, half) f = Floor(e) b = Clip(f, zero, levels) q = Mul(b, step)",
    "its last value no level": (
        "a = Div(c, step) e = Add(a, half) f = Floor(e) b = Clip(f, zero, between) q = Mul(b, step)"
    ),
    "its last value no level, scaled": (
        "r = Relu(c) a = Div(r, step) e = Add(a, half) f = Floor(e) b = Mul(f, step) q = Min(b, one)"
    ),
    "its first value no level": (
        "a = Div(c, step) e = Add(a, half) f = Floor(e) b = Clip(f, minus_half, levels) q = Mul(b, step)"
    ),
    "clipped where Round turns": "r = Clip(c, zero, edge) a = Div(r, step) f = Round(a) q = Mul(f, step)",
    "bounds per channel": (
        "a = Div(c, step) e = Add(a, half) f = Floor(e) m = Min(f, many) b = Relu(m) q = Mul(b, step)"
    ),
}


def test_a_bound_behind_the_rounding_that_is_never_reached_may_be_anything():
    body = "r = Clip(c, zero, theta) a = Div(r, step) e = Add(a, half) f = Floor(e) b = Min(f, more) q = Mul(b, step)"
    site = sole_site(body, constants={**NUMBERS, "more": np.float32(L + 0.3)})
    assert (site.threshold, site.levels) == ((THETA,), L)


@pytest.mark.parametrize("name", NOT_QCFS)
def test_chain_is_no_qcfs(name):
    constants = {
        **NUMBERS,
        "minus_one": np.float32(-1),
        "between": np.float32(2.5),
        "edge": np.float32(2.5 * THETA / L),
        "minus_step": np.float32(-THETA / L),
        "many": np.array([[[1]], [[2]], [[3]]], np.float32),
    }
    assert [m for m in find_qcfs(GraphView(model_of(NOT_QCFS[name], constants=constants))) if m.output == "q"] == []


def test_a_constant_that_adds_an_axis_is_no_part_of_it():
    constants = {**NUMBERS, "t": np.full((1, 1, 1), THETA, np.float32)}
    text = f"g (float[N,3] x) => (float[1,N,3] y) {{ c = Neg(x) {PER_CHANNEL} y = Neg(q) }}"
    network = find_network(normalise(parse(text, **constants)).model)
    assert all(site.spikes != "q" for site in network.sites)


def test_clip_bounds_computed_in_the_graph():
    text = (
        "g (float[N,3] x, float top) => (float[N,3] y) { c = Neg(x) a = Div(c, step) "
        "e = Add(a, half) f = Floor(e) b = Clip(f, zero, top) q = Mul(b, step) y = Neg(q) }"
    )
    assert find_qcfs(GraphView(parse(text, **NUMBERS))) == []


def test_two_chains_in_a_row_are_two_sites():
    first = CHAINS["clip after"].replace("q =", "p =")
    second = "a2 = Div(p, step) e2 = Add(a2, half) f2 = Floor(e2) b2 = Clip(f2, zero, levels) q = Mul(b2, step)"
    network = find_network(model_of(f"{first} {second}"))
    assert [(site.current, site.spikes) for site in network.sites] == [("c", "p"), ("p", "q")]
    assert network.sites[1].upstream == (network.sites[0].name,)


def test_two_torch_chains_in_a_row():
    first = CHAINS["clip before (torch)"].replace("q =", "p =")
    second = (
        "a2 = Div(p, theta) b2 = Clip(a2, zero, one) d2 = Mul(b2, levels) e2 = Add(d2, half) "
        "f2 = Floor(e2) h2 = Div(f2, levels)"
    )
    network = find_network(model_of(f"{first} {second} q = Mul(h2, theta)"))
    assert [(site.current, site.spikes) for site in network.sites] == [("c", "p"), ("p", "q")]
    assert all(len(site.nodes) == 7 for site in network.sites)


def test_shipped_network():
    network = find_network(normalise(onnx.load(MODELS / "digits_qcfs4.onnx")).model)
    assert network.refusals == ()
    assert {site.op_type for site in network.sites} == {"QCFS"}
    assert {site.levels for site in network.sites} == {4}
