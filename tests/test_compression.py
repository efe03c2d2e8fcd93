"""Compressed biases: what is stored, that the emitted model makes the same table of it, and what it costs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import assert_valid, numbers, run
from networks import CALIBRATION, RELU, digits, inputs, network_of, residual

from ftbc_onnx import convert
from ftbc_onnx.compression import RANK, Factors, compress
from ftbc_onnx.graph.emit import emit
from ftbc_onnx.graph.files import load_snn
from ftbc_onnx.graph.provenance import read_plan
from ftbc_onnx.neurons import NeuronSpec
from ftbc_onnx.plan import SpikingPlan

T = 12


def plan_with(biases: str) -> SpikingPlan:
    """A plan of the digits network with random biases, or with smooth ones of a few courses in time."""
    network = network_of(onnx.load(RELU))
    rng = np.random.default_rng(2)
    tables = {
        site.name: rng.normal(0, 0.2, (T, site.channels))
        if biases == "random"
        else np.exp(-np.arange(T)[:, None] / 3) @ rng.normal(0, 0.2, (1, site.channels))
        for site in network.sites
    }
    thresholds = {site.name: rng.uniform(0.5, 1.5, site.channels) for site in network.sites}
    return SpikingPlan("", network.sites, T, NeuronSpec("signed-st"), thresholds, tables)


def test_least_squared_error_of_so_many_products() -> None:
    table = numbers(12, 30)
    values = np.linalg.svd(table.astype(np.float64), compute_uv=False)
    factors = compress(table)
    assert (factors.courses.shape, factors.vectors.shape) == ((RANK, 12), (RANK, 30))
    error = float(np.sqrt(((factors.table() - table) ** 2).sum()))
    np.testing.assert_allclose(error, np.sqrt((values[RANK:] ** 2).sum()), rtol=1e-5)


@pytest.mark.parametrize("shape", [(3, 30), (30, 3), (1, 1)])
def test_small_tables_lose_nothing(shape: tuple[int, int]) -> None:
    table = numbers(*shape)
    np.testing.assert_allclose(compress(table).table(), table, rtol=0, atol=1e-6)


def test_products_are_added_in_order_in_float32() -> None:
    factors = Factors(numbers(4, 5), numbers(4, 6))
    total = np.zeros((5, 6), np.float32)
    for course, vector in zip(factors.courses, factors.vectors, strict=True):
        total = total + course[:, None] * vector[None]
    np.testing.assert_array_equal(factors.table(), total)


@pytest.mark.parametrize("form", ["unrolled", "loop"])
def test_the_emitted_model_makes_the_same_table(form: str) -> None:
    plan = plan_with("random").with_compressed_biases()
    assert set(plan.factors) == {site.name for site in plan.sites if site.channels > RANK}
    network = network_of(onnx.load(RELU))
    model = emit(network, plan, form).model
    assert_valid(model)
    names = {tensor.name for tensor in model.graph.initializer}
    for site in plan.sites:
        assert (f"{site.name}/bias" in names) == (site.name not in plan.factors)
    plain = emit(network, plan.with_biases(plan.biases), form).model
    feeds = {"image": digits("test", 4)[0]}
    for ours, theirs in zip(
        run(model, feeds, optimise=False).values(), run(plain, feeds, optimise=False).values(), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_a_prefix_keeps_its_factors() -> None:
    plan = plan_with("random").with_compressed_biases()
    short = plan.prefix(7)
    for name, bias in short.biases.items():
        np.testing.assert_array_equal(bias, plan.biases[name][:7])
    assert set(short.factors) == set(plan.factors)
    assert not plan.without_biases().factors


def test_no_more_than_four_steps_are_left_alone() -> None:
    plan = plan_with("random").prefix(RANK)
    assert not plan.with_compressed_biases().factors


def test_a_conversion_says_what_it_saves_and_costs(tmp_path: Path) -> None:
    options = {"steps": T, "neuron": "signed-st", "threshold": "mse", "gate": False}
    plain, packed = (convert(RELU, CALIBRATION, compress_bias=on, **options) for on in (False, True))
    assert plain.report["calibration"]["compression"] is None
    said = packed.report["calibration"]["compression"]
    assert said["before"] == sum(bias.size for bias in plain.plan.biases.values())
    assert said["after"] < said["before"]
    assert 0 < said["relative_error"] < 0.6
    assert said["output_error"] != said["output_error_before"]
    assert packed.report["verification"]["bitwise"]
    found = read_plan(load_snn(packed.save(tmp_path / "packed.onnx")))
    assert found == packed.plan
    assert set(found.factors) == set(packed.plan.factors)


def test_without_biases_there_is_nothing_to_compress() -> None:
    result = convert(residual(), inputs(16), steps=8, neuron="if", threshold="mse", rule="none", compress_bias=True)
    assert not result.plan.factors
