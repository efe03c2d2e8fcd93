"""Ridge regression for layers, against the problem it solves and against what a Conv computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from helpers import numbers, parse, run

from ftbc_onnx.graph.view import attributes
from ftbc_onnx.least_squares import patches, refit_conv, refit_gemm, ridge


@pytest.mark.parametrize(("rows", "inputs"), [(200, 7), (9, 30), (12, 12)])
def test_nothing_near_the_solution_is_better(rows: int, inputs: int) -> None:
    x, r, strength = numbers(rows, inputs) + 1.5, numbers(rows, 3, seed=1) - 2.0, 0.2
    change, constant = ridge(x, r, strength)
    size = np.mean((x - x.mean(0)) ** 2)

    def loss(d: np.ndarray, c: np.ndarray) -> float:
        left = r - (x @ d + c)
        return float(np.mean(np.sum(left**2, 1)) + strength * size * np.sum(d**2))

    least = loss(change, constant)
    for seed in range(20):
        step = numbers(*change.shape, seed=seed, scale=1e-2)
        assert loss(change + step, constant) > least
        assert loss(change, constant + numbers(3, seed=seed, scale=1e-2)) > least


def test_without_a_ridge_to_speak_of_it_finds_the_layer() -> None:
    x, weights = numbers(300, 5) + 1, numbers(5, 2, seed=3)
    change, constant = ridge(x, x @ weights + 0.75, 1e-9)
    assert np.allclose(change, weights, atol=1e-3)
    assert np.allclose(constant, 0.75, atol=1e-3)


def test_inputs_that_never_vary_change_no_weight() -> None:
    change, constant = ridge(np.full((10, 4), 2.0, np.float32), numbers(10, 3), 0.1)
    assert not change.any()
    assert np.allclose(constant, numbers(10, 3).mean(0), atol=1e-6)


CONVS = {
    "plain": ((1, 3, 9, 8), (4, 3, 3, 3), ""),
    "padded, strided": ((2, 3, 9, 8), (4, 3, 3, 2), "pads = [1, 0, 2, 1], strides = [2, 3]"),
    "dilated": ((2, 3, 9, 8), (4, 3, 3, 2), "dilations = [2, 3], pads = [1, 1, 1, 1]"),
    "groups": ((2, 4, 6, 6), (8, 2, 3, 3), "group = 2, pads = [1, 1, 1, 1]"),
    "depthwise": ((2, 4, 6, 6), (4, 1, 3, 3), "group = 4, strides = [2, 2]"),
    "SAME_UPPER": ((2, 3, 9, 8), (4, 3, 3, 4), 'auto_pad = "SAME_UPPER", strides = [2, 1]'),
    "SAME_LOWER": ((2, 3, 9, 8), (4, 3, 3, 4), 'auto_pad = "SAME_LOWER", strides = [2, 3]'),
    "VALID": ((2, 3, 9, 8), (4, 3, 3, 4), 'auto_pad = "VALID"'),
    "1D": ((2, 3, 9), (4, 3, 3), "strides = [2], pads = [1, 1]"),
    "3D": ((2, 2, 5, 6, 4), (3, 2, 3, 2, 1), "pads = [1, 0, 0, 1, 1, 0], strides = [2, 1, 1]"),
}


def _model(name: str) -> tuple[onnx.ModelProto, dict[str, Any], np.ndarray]:
    """A convolution, its attributes and its weights."""
    shape, dims, text = CONVS[name]
    inside = ", ".join(filter(None, (f"kernel_shape = [{', '.join(map(str, dims[2:]))}]", text)))
    axes, weights = "abcdef"[: len(shape) - 2], numbers(*dims, seed=1)
    before, behind = ", ".join(axes), ", ".join(axes.upper())
    graph = f"graph (float[N, I, {before}] x) => (float[N, O, {behind}] y) {{ y = Conv <{inside}> (x, w) }}"
    model = parse(graph, w=weights)
    return model, attributes(model.graph.node[0]), weights


@pytest.mark.parametrize("name", CONVS)
def test_patches_are_what_a_conv_sees(name: str) -> None:
    model, described, weights = _model(name)
    x = numbers(*CONVS[name][0], seed=2)
    y = run(model, {"x": x})["y"]
    rows, places = patches(x, weights.shape[2:], y.shape[2:], described)
    assert len(rows) == y.size // y.shape[1]
    groups = int(described.get("group", 1))
    made = [
        seen.reshape(len(seen), -1) @ own.reshape(len(own), -1).T
        for seen, own in zip(np.split(rows, groups, axis=1), np.split(weights, groups), strict=True)
    ]
    assert np.allclose(np.concatenate(made, axis=1), np.moveaxis(y, 1, -1)[places], atol=1e-4)


@pytest.mark.parametrize("name", CONVS)
def test_a_conv_that_lost_its_weights_finds_them(name: str) -> None:
    model, described, weights = _model(name)
    x = numbers(400, *CONVS[name][0][1:], seed=5)
    found, constant = refit_conv(np.zeros_like(weights), x, run(model, {"x": x})["y"] + 0.5, 1e-8, described)
    assert np.allclose(found, weights, atol=2e-2)
    assert np.allclose(constant, 0.5, atol=2e-2)


def test_channels_of_a_depthwise_conv_share_a_ridge() -> None:
    x = np.zeros((64, 2, 4, 4), np.float32)
    x[:, 0] = numbers(64, 4, 4)
    x[0, 1, 2, 2] = 1.0  # a channel that fired once
    r = numbers(64, 2, 4, 4, seed=1)
    found, _ = refit_conv(np.zeros((2, 1, 1, 1), np.float32), x, r, 0.1, {"group": 2})
    assert abs(found[1]).max() < 0.05


def test_places_are_drawn_once_and_the_same_again() -> None:
    x = numbers(3, 2, 8, 8)
    rows, places = patches(x, (3, 3), (6, 6), {}, most=20)
    again, _ = patches(x, (3, 3), (6, 6), {}, most=20)
    assert len(rows) == 20
    assert len(set(zip(*(i.tolist() for i in places), strict=True))) == 20
    assert np.array_equal(rows, again)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_gemm_finds_its_weights(transposed: bool) -> None:
    x, weights = numbers(200, 6), numbers(6, 4, seed=1)
    own = np.zeros_like(weights.T if transposed else weights)
    found, constant = refit_gemm(own, x, x @ weights - 1, 1e-9, transposed=transposed)
    assert np.allclose(found, weights.T if transposed else weights, atol=1e-3)
    assert np.allclose(constant, -1, atol=1e-3)
