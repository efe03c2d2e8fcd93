"""Verification: the emitted model is its plan to the last bit, and what is not is refused."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from helpers import constant, make_plan, numbers, parse
from networks import QCFS, RELU, THRESHOLDS, digits, inputs, network_of, plan_of, residual
from onnx import numpy_helper

from ftbc_onnx import verify as module
from ftbc_onnx.errors import ModelError, VerificationError
from ftbc_onnx.graph.emit import emit
from ftbc_onnx.graph.emit.unrolled import bias_name, emit_unrolled, threshold_name
from ftbc_onnx.graph.sites import Network
from ftbc_onnx.plan import SpikingPlan
from ftbc_onnx.results import VerificationResult
from ftbc_onnx.runtime import CPU, Device, Session
from ftbc_onnx.verify import check_samples_apart, simulate, verify


def check(
    network: Network, plan: SpikingPlan, feeds: dict[str, np.ndarray], **tampered: np.ndarray
) -> VerificationResult:
    """Emit and verify; initializers may be replaced before (a double underscore in a name stands for a slash)."""
    emitted = emit_unrolled(network, plan)
    for name, value in tampered.items():
        (tensor,) = (t for t in emitted.model.graph.initializer if t.name == name.replace("__", "/"))
        assert tuple(tensor.dims) == value.shape
        tensor.CopyFrom(numpy_helper.from_array(value.astype(np.float32), tensor.name))
    return verify(emitted, network, plan, feeds)


@pytest.mark.parametrize("path", [RELU, QCFS], ids=lambda path: path.stem)
@pytest.mark.parametrize("rows", [1, 3, 8])
def test_digits_are_their_plan_bitwise(path, rows: int) -> None:
    network = network_of(onnx.load(path))
    images, _ = digits("test", rows)
    result = check(network, make_plan(network, 5, threshold=0.7, bias=0.2), {"image": images})
    assert result.bitwise
    assert result.largest_difference == 0
    assert (result.samples, result.steps) == (rows, 5)
    assert result.batch_sizes == ((1, rows) if rows > 1 else (1,))
    assert result.batch_difference < 1e-3


RATE_EXACT = {
    "MaxPool": "p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r)  y = Flatten(p)",
    "Softmax": "p = Softmax<axis=1>(r)  y = Flatten(p)",
    "LayerNormalization": "p = LayerNormalization<axis=-1>(r, one)  y = Flatten(p)",
    "a site behind": "p = MaxPool<kernel_shape=[2,2]>(r)  q = Conv(p, v)  z = Relu(q)  y = Flatten(z)",
    "a product": "p = Mul(r, r)  y = Flatten(p)",
    "means and currents": "p = MaxPool<kernel_shape=[1,1]>(r)  q = Add(p, r)  z = Relu(q)  y = Flatten(z)",
}


@pytest.mark.parametrize("body", RATE_EXACT.values(), ids=RATE_EXACT)
def test_rate_exact_networks_are_their_plan_bitwise(body: str) -> None:
    model = parse(
        f"g (float[N,2,4,4] x) => (float[N,K] y) {{ c = Conv<pads=[1,1,1,1]>(x, w)  r = Relu(c)  {body} }}",
        w=numbers(3, 2, 3, 3, seed=1, scale=0.5),
        v=numbers(2, 3, 2, 2, seed=2),
        one=np.ones(4, np.float32),
    )
    network = network_of(model)
    result = check(network, make_plan(network, 6, threshold=0.9, bias=0.2), {"x": numbers(4, 2, 4, 4, seed=3)})
    assert result.bitwise


def test_simulation_is_the_running_mean_of_the_output() -> None:
    """An independent statement for a network of one layer: y[t] is the mean of the spikes so far."""
    network = network_of(parse("g (float[N,3] x) => (float[N,3] y) { y = Relu(x) }"))
    plan = make_plan(network, 4, threshold=0.75, bias=0.25)
    x = numbers(5, 3)
    (bias,) = plan.biases.values()
    v, total = np.full((5, 3), 0.375, np.float32), np.zeros((5, 3), np.float32)
    for t, mean in enumerate(simulate(network, plan, {"x": x})["y"]):
        v = (v + x) + bias[t]
        s = np.where(v >= 0.75, np.float32(0.75), np.float32(0))
        v, total = v - s, total + s
        np.testing.assert_array_equal(mean, total / np.float32(t + 1))


class TestTampering:
    @pytest.fixture
    def network(self) -> Network:
        return network_of(residual())

    @pytest.fixture
    def plan(self, network: Network) -> SpikingPlan:
        return plan_of(network, THRESHOLDS, 3)

    def test_untouched_it_passes(self, network: Network, plan: SpikingPlan) -> None:
        assert check(network, plan, {"x": inputs(3)}).bitwise

    @pytest.mark.parametrize("number", [0, 1, 2])
    def test_a_bias_that_is_not_the_plans(self, network: Network, plan: SpikingPlan, number: int) -> None:
        name = bias_name(network.sites[number].name)
        with pytest.raises(VerificationError, match="the emitted model differs from its plan by"):
            check(network, plan, {"x": inputs(3)}, **{name.replace("/", "__"): np.full((3, 4), 0.7)})

    def test_a_threshold_that_is_not_the_plans(self, network: Network, plan: SpikingPlan) -> None:
        name = threshold_name(network.sites[1].name)
        with pytest.raises(VerificationError, match="differs from its plan"):
            check(network, plan, {"x": inputs(3)}, **{name.replace("/", "__"): np.full(4, 0.7)})

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_an_output_that_is_no_number(self, network: Network, plan: SpikingPlan, value: float) -> None:
        with pytest.raises(VerificationError, match="differs from its plan by inf"):
            check(network, plan, {"x": inputs(3)}, b4=np.array([0, value, 0]))

    def test_a_difference_of_roundings_is_reported_and_passes(self, network: Network, plan: SpikingPlan) -> None:
        emitted = emit_unrolled(network, plan)
        b4 = constant(emitted.model, "b4")
        result = check(network, plan, {"x": inputs(3)}, b4=b4 * np.float32(1 + 2e-7))
        assert not result.bitwise
        assert 0 < result.largest_difference < 1e-6

    def test_an_output_of_another_shape(self, network: Network, plan: SpikingPlan) -> None:
        wide = residual()
        for tensor in wide.graph.initializer:
            if tensor.name in ("w4", "b4"):
                value = numpy_helper.to_array(tensor)
                tensor.CopyFrom(numpy_helper.from_array(np.concatenate([value, value]), tensor.name))
        del wide.graph.output[0].type.tensor_type.shape.dim[:]
        emitted = emit_unrolled(network_of(wide), plan)
        with pytest.raises(VerificationError, match=r"output 'y' has shape \(2, 6\), its plan gives \(2, 3\)"):
            verify(emitted, network, plan, {"x": inputs(2)})


def test_both_sides_run_with_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions of segments would each keep threads of their own; and with several, a Conv may add in another order."""
    opened: list[int | None] = []
    made = Session.__init__

    def watched(self: Session, model: object, device: Device = CPU, optimise: bool = True) -> None:
        opened.append(device.threads)
        made(self, model, device, optimise)

    monkeypatch.setattr(Session, "__init__", watched)
    network = network_of(residual())
    for form in ("unrolled", "fused", "step"):
        opened.clear()
        plan = make_plan(network, 2)
        assert verify(emit(network, plan, form), network, plan, {"x": inputs(2)}).bitwise
        assert len(opened) > 4
        assert set(opened) == {1}


class TestBatch:
    """A model with a free batch must give a sample the same output in every batch."""

    def refused(
        self, text: str, rows: int = 2, kind: type[Exception] = VerificationError, **weights: np.ndarray
    ) -> str:
        network = network_of(parse(text, **weights))
        with pytest.raises(kind) as caught:
            check(network, make_plan(network, 3, threshold=0.5), {"x": np.abs(numbers(rows, 4))})
        message = str(caught.value)
        assert "\n" not in message
        assert "export" in message
        assert "dynamic batch" in message
        return message

    def test_that_mixes_samples(self) -> None:
        text = "g (float[N,4] x) => (float[N,4] y) { r = Relu(x)  m = ReduceMean<axes=[0]>(r)  y = Sub(r, m) }"
        assert "changes by" in self.refused(text)

    def test_that_mixes_samples_where_spikes_hide_it(self) -> None:
        """Spikes behind the mixture are the same in every batch: all at the threshold."""
        text = """g (float[N,4] x) => (float[N,4] y) {
            r = Relu(x) m = ReduceSum(r, axes) t = Add(m, one) q = Relu(t) y = Neg(q) }"""
        network = network_of(parse(text, axes=np.array([0]), one=np.array([2], np.float32)))
        with pytest.raises(VerificationError, match=r"changes by .* with the batch it is in"):
            check_samples_apart(network, {"x": np.abs(numbers(2, 4))})
        check_samples_apart(network, {"x": np.abs(numbers(1, 4))})  # nothing to mix

    def test_that_fixes_the_batch_of_its_output(self) -> None:
        text = "g (float[N,4] x) => (float[M,K] y) <int64[2] s = {2,-1}> { r = Relu(x)  y = Reshape(r, s) }"
        message = self.refused(text)
        assert "gives an output of shape (2, 2), a batch of several one of (2, 4)" in message
        assert "(Reshape 'y' has a constant batch)" in message

    def test_that_runs_in_one_batch_size_only(self) -> None:
        text = "g (float[N,4] x) => (float[M,2] y) <int64[2] s = {4,2}> { r = Relu(x)  y = Reshape(r, s) }"
        assert "on a batch of 1" in self.refused(text, kind=ModelError)
        assert "on a batch of 3" in self.refused(text, rows=3, kind=ModelError)

    def test_that_was_baked_in_is_free_again(self) -> None:
        text = "g (float[N,4] x) => (float[M,2,2] y) <int64[3] s = {2,2,2}> { r = Relu(x)  y = Reshape(r, s) }"
        network = network_of(parse(text))
        result = check(network, make_plan(network, 3, threshold=0.5), {"x": np.abs(numbers(5, 4))})
        assert result.batch_sizes == (1, 5)

    def test_whose_output_is_one_number_is_compared_in_one_size(self) -> None:
        network = network_of(parse("g (float[N,4] x) => (float y) { r = Relu(x)  y = ReduceMean<keepdims=0>(r) }"))
        result = check(network, make_plan(network, 3, threshold=0.5), {"x": np.abs(numbers(2, 4))})
        assert result.bitwise
        assert result.batch_difference == 0

    def test_of_a_fixed_size_is_run_in_that_size_only(self) -> None:
        text = "g (float[2,4] x) => (float[2,4] y) { r = Relu(x)  m = ReduceMean<axes=[0]>(r)  y = Sub(r, m) }"
        network = network_of(parse(text))
        result = check(network, make_plan(network, 3, threshold=0.5), {"x": numbers(2, 4)})
        assert result.batch_sizes == (2,)


@pytest.mark.parametrize(
    "end",
    [
        "bool[N,4] y) <float c = {0.3}> { r = Relu(x)  y = Greater(r, c) }",
        "int64[N,1] y) { r = Relu(x)  y = ArgMax<axis=1>(r) }",
    ],
)
def test_outputs_need_not_be_floats(end: str) -> None:
    network = network_of(parse(f"g (float[N,4] x) => ({end}"))
    result = check(network, make_plan(network, 3, threshold=0.5), {"x": numbers(3, 4)})
    assert result.bitwise


def test_of_a_long_run_the_first_steps_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_RUNS", 12)
    network = network_of(residual())
    assert check(network, plan_of(network, THRESHOLDS, 7), {"x": inputs(2)}).steps == 4
