"""Quantised networks in the QDQ format: what a pair of QuantizeLinear and DequantizeLinear becomes, by its place."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from helpers import numbers, ops, parse, run

from ftbc_onnx import ConvertConfig, ModelError, VerificationError, convert
from ftbc_onnx.graph.dequantise import dequantise
from ftbc_onnx.graph.normalise import normalise
from ftbc_onnx.graph.prepare import prepare
from ftbc_onnx.graph.sites import Network

SCALE = np.float32(0.03)
WEIGHTS = {"w": numbers(6, 3, 3, 3, scale=0.3), "b": numbers(6), "m": numbers(6, 4), "scale": SCALE}
LOW, HIGH, MIDDLE = np.uint8(0), np.int8(-128), np.uint8(128)


def pair(read: str, made: str) -> str:
    """A pair with `scale` and `zero`."""
    return f"{made}_q = QuantizeLinear({read}, scale, zero) {made} = DequantizeLinear({made}_q, scale, zero)"


def model_of(
    body: str, zero: np.ndarray | np.generic = LOW, opset: int = 17, **constants: np.ndarray
) -> onnx.ModelProto:
    """x [N,3,5,5] to y, by way of c = Conv(x) and p [N,6,5,5], what a body makes of it."""
    text = f"""g (float[N,3,5,5] x) => (float[N,4] y) {{ c = Conv <pads = [1,1,1,1]> (x, w, b) {body}
        g = GlobalAveragePool(p) f = Flatten(g) y = Gemm(f, m) }}"""
    return parse(text, opset=opset, **{**WEIGHTS, "zero": np.asarray(zero), **constants})


def network_of(model: onnx.ModelProto) -> tuple[Network, dict[str, int]]:
    normalised, network = prepare(model, ConvertConfig(steps=2))
    assert not network.refusals
    return network, normalised.changes


class TestAPair:
    @pytest.mark.parametrize("zero", [LOW, HIGH], ids=["uint8", "int8"])
    def test_that_bounds_at_zero_is_a_rectifier_with_a_ceiling(self, zero: np.generic) -> None:
        """As onnxruntime's quantiser writes it, which drops the Relu."""
        network, changes = network_of(model_of(pair("c", "p"), zero))
        (site,) = network.sites
        assert (site.op_type, site.current) == ("Clip", "c")
        assert site.ceiling == pytest.approx(255 * SCALE)
        assert changes["dequantise"] == 1

    @pytest.mark.parametrize("zero", [np.int8(0), LOW, MIDDLE], ids=["int8", "uint8 at 0", "uint8"])
    def test_behind_a_relu_gives_it_a_ceiling(self, zero: np.generic) -> None:
        """As TensorRT's tools write it."""
        network, _ = network_of(model_of(f"r = Relu(c) {pair('r', 'p')}", zero))
        (site,) = network.sites
        top = np.iinfo(zero.dtype).max - int(zero)
        assert site.ceiling == pytest.approx(top * SCALE)

    @pytest.mark.parametrize("body", ["p", "r = Relu(c)"], ids=["alone", "behind a Relu"])
    def test_is_called_what_the_quantiser_was(self, body: str) -> None:
        """So that --include and --exclude can speak of it."""
        model = model_of(pair("c", "p") if body == "p" else f"{body} {pair('r', 'p')}")
        next(node for node in model.graph.node if node.op_type == "QuantizeLinear").name = "my quantiser"
        network, _ = network_of(model)
        assert [site.name for site in network.sites] == ["my quantiser"]

    def test_behind_a_clip(self) -> None:
        network, _ = network_of(
            model_of(f"r = Clip(c, low, six) {pair('r', 'p')}", low=np.float32(0), six=np.float32(6))
        )
        (site,) = network.sites
        assert site.ceiling == pytest.approx(6)

    @pytest.mark.parametrize(
        "body",
        [
            f"{pair('x', 'u')} d = Conv <pads = [1,1,1,1]> (u, w, b) p = Relu(d)",
            f"r = Relu(c) k = AveragePool <kernel_shape = [2,2]> (r) {pair('k', 'p')}",
            f"r = Relu(c) k = Pad(r, by) {pair('k', 'p')}",
            f"r = Relu(c) k = Pad(r, by, scale) {pair('k', 'p')}",
            f"r = Relu(c) k = Concat <axis = 1> (r, r) h = Slice(k, start, end, start) {pair('h', 'p')}",
            f"r = Relu(c) k = Softmax(c) h = Mul(r, k) {pair('h', 'p')}",
            f"r = Relu(c) k = Sub(r, c) s = Mul(k, k) h = Add(s, r) {pair('h', 'p')}",
            f"r = Relu(c) k = Sub(r, c) s = Pow(k, two) {pair('s', 'p')}",
            f"r = Relu(c) {pair('r', 'k')} p = Add(r, k)",
        ],
        ids=["input", "pool", "pad", "pad by a number", "concat", "softmax", "square", "power", "read twice"],
    )
    def test_of_what_is_not_negative_is_nothing(self, body: str) -> None:
        constants = {"by": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "start": np.array([1]), "end": np.array([7])}
        network, changes = network_of(model_of(body, two=np.float32(2), **constants))
        assert changes["dequantise"] == 1
        assert [site.op_type for site in network.sites if not site.signed] == ["Relu"]
        assert not {"Clip", "QuantizeLinear", "DequantizeLinear"} & set(ops(network.view.model))

    @pytest.mark.parametrize(
        "between",
        [
            "k = MaxPool <kernel_shape = [2,2]> (r)",
            "k = MaxPool <kernel_shape = [3,3], pads = [1,1,1,1]> (r)",
            "k = Reshape(r, shape)",
            "h = Transpose <perm = [0,1,3,2]> (r) i = MaxPool <kernel_shape = [2,2]> (h) k = Identity(i)",
        ],
        ids=["pool", "padded pool", "reshape", "several"],
    )
    @pytest.mark.parametrize("rectifier", ["r = Relu(c)", "r = Clip(c, least)", "r = Max(c, least)"])
    @pytest.mark.parametrize("zero", [LOW, np.int8(0)], ids=["uint8", "int8"])
    def test_behind_what_only_moves_gives_the_rectifier_a_ceiling(
        self, between: str, rectifier: str, zero: np.generic
    ) -> None:
        """Of what a calibrator has cut off nothing comes back; the scale is small enough for that to matter."""
        scale, shape = np.float32(0.004), np.array([-1, 6, 5, 5])
        model = model_of(f"{rectifier} {between} {pair('k', 'p')}", zero, scale=scale, shape=shape, least=np.float32(0))
        network, changes = network_of(model)
        assert changes["dequantise"] == 1
        (site,) = network.sites
        assert site.ceiling == pytest.approx(np.iinfo(zero.dtype).max * scale)
        x = numbers(8, 3, 5, 5)
        expected = run(model, {"x": x}, optimise=False)["y"]
        np.testing.assert_allclose(run(network.view.model, {"x": x})["y"], expected, atol=4 * scale)

    def test_of_few_levels_behind_a_pool_is_qcfs_before_it(self) -> None:
        pool = "k = MaxPool <kernel_shape = [2,2]> (r)"
        quantised = "q = QuantizeLinear(k, scale, zero) h = Clip(q, zero, top) p = DequantizeLinear(h, scale, zero)"
        model = model_of(f"r = Relu(c) {pool} {quantised}", top=np.uint8(15))
        network, _ = network_of(model)
        (site,) = network.sites
        assert (site.op_type, site.levels) == ("QCFS", 15)
        x = numbers(8, 3, 5, 5)
        expected = run(model, {"x": x}, optimise=False)["y"]
        np.testing.assert_allclose(run(network.view.model, {"x": x})["y"], expected, atol=1e-5)

    @pytest.mark.parametrize(
        "between",
        [
            "k, at = MaxPool <kernel_shape = [2,2]> (r) a = Cast <to = 1> (at) u = ReduceMean <keepdims = 0> (a)",
            "k = MaxPool <kernel_shape = [2,2]> (r) u = ReduceMean <keepdims = 0> (r)",
            "k = MaxPool <kernel_shape = [2,2]> (r) u = ReduceMean <keepdims = 0> (k)",
        ],
        ids=["places", "read before", "read behind"],
    )
    def test_behind_a_pool_that_others_read_is_nothing(self, between: str) -> None:
        network, changes = network_of(model_of(f"r = Relu(c) {between} {pair('k', 'v')} p = Add(v, u)"))
        assert changes["dequantise"] == 1
        assert all(site.ceiling is None for site in network.sites)

    @pytest.mark.parametrize("body", [f"{pair('c', 'k')} p = Relu(k)", f"r = Relu(c) a = Add(r, c) {pair('a', 'p')}"])
    def test_of_both_signs_is_nothing(self, body: str) -> None:
        network, changes = network_of(model_of(body, MIDDLE))
        assert changes["dequantise"] == 1
        assert [site.op_type for site in network.sites if not site.signed] == ["Relu"]
        assert "Clip" not in ops(network.view.model)

    def test_of_a_sum_that_may_be_negative_is_a_rectifier(self) -> None:
        network, _ = network_of(model_of(f"r = Relu(c) a = Add(r, c) {pair('a', 'p')}"))
        assert [site.op_type for site in network.sites] == ["Relu", "Clip"]

    @pytest.mark.parametrize("before", ["", "r = Relu(c)"], ids=["alone", "behind a Relu"])
    @pytest.mark.parametrize(("kind", "least", "levels"), [("UINT4", 0, 15), ("INT4", -8, 15), ("INT4", 0, 7)])
    def test_of_few_levels_is_qcfs(self, kind: str, least: int, levels: int, before: str) -> None:
        """A network is trained for them: thresholds and levels are stated."""
        read = "r" if before else "c"
        model = model_of(f"{before} {pair(read, 'p')}", opset=21)
        (zero,) = (tensor for tensor in model.graph.initializer if tensor.name == "zero")
        zero.CopyFrom(onnx.helper.make_tensor("zero", getattr(onnx.TensorProto, kind), [], [least]))
        network, _ = network_of(model)
        if levels == 7 and not before:  # both signs: its range matters
            assert all(site.signed for site in network.sites)
            assert "Clip" in ops(network.view.model)
            x = numbers(8, 3, 5, 5)
            expected = run(model, {"x": x}, optimise=False)["y"]
            np.testing.assert_allclose(run(network.view.model, {"x": x})["y"], expected, atol=4 * SCALE)
            return
        (site,) = network.sites
        assert (site.levels, site.current) == (levels, "c")
        np.testing.assert_allclose(site.threshold, levels * SCALE, rtol=1e-6)
        x = numbers(8, 3, 5, 5)
        expected = run(model, {"x": x}, optimise=False)["y"]  # onnxruntime takes 0 for the least number of int4
        np.testing.assert_allclose(run(network.view.model, {"x": x})["y"], expected, atol=1e-5)

    @pytest.mark.parametrize("before", ["", "r = Relu(c)"], ids=["alone", "behind a Relu"])
    @pytest.mark.parametrize(("top", "levels"), [(3, 3), (15, 15), (63, None)])
    def test_with_a_clip_between(self, top: int, levels: int | None, before: str) -> None:
        """Fewer bits than a type has, as Brevitas writes them (QCDQ)."""
        body = f"""{before} q = QuantizeLinear({"r" if before else "c"}, scale, zero) k = Clip(q, zero, top)
            p = DequantizeLinear(k, scale, zero)"""
        model = model_of(body, top=np.uint8(top))
        network, changes = network_of(model)
        assert changes["dequantise"] == 1
        (site,) = network.sites
        assert site.levels == levels
        if levels is None:
            assert site.ceiling == pytest.approx(top * SCALE)
        else:
            np.testing.assert_allclose(site.threshold, top * SCALE, rtol=1e-6)
        x = numbers(8, 3, 5, 5)
        expected = run(model, {"x": x}, optimise=False)["y"]
        close = 1e-5 if levels else 4 * SCALE
        np.testing.assert_allclose(run(network.view.model, {"x": x})["y"], expected, atol=close)

    def test_with_a_clip_to_a_range_that_is_computed_stays(self) -> None:
        body = """m = ReduceMax <keepdims = 0> (c) n = Cast <to = 2> (m) q = QuantizeLinear(c, scale, zero)
            k = Clip(q, zero, n) p = DequantizeLinear(k, scale, zero)"""
        model = normalise(model_of(body)).model
        assert dequantise(model) == (model, 0)

    def test_before_a_batch_normalization_lets_it_into_the_layer(self) -> None:
        body = f"{pair('c', 'k')} n = BatchNormalization(k, ones, b, b, ones) {pair('n', 'l')} p = Relu(l)"
        network, changes = network_of(model_of(body, MIDDLE, ones=np.ones(6, np.float32)))
        assert (changes["dequantise"], changes["fold_batchnorm"]) == (2, 1)
        assert ops(network.view.model) == ["Conv", "Relu", "GlobalAveragePool", "Flatten", "Gemm"]

    def test_may_be_there_twice(self) -> None:
        """One for each reader, as some tools write them."""
        network, _ = network_of(model_of(f"r = Relu(c) {pair('r', 'k')} {pair('r', 'l')} p = Add(k, l)"))
        (site,) = network.sites
        assert site.ceiling == pytest.approx(255 * SCALE)

    def test_of_few_levels_matters_behind_a_pool_too(self) -> None:
        body = """r = Relu(c) h = AveragePool <kernel_shape = [2,2]> (r) q = QuantizeLinear(h, scale, zero)
            k = Clip(q, zero, top) p = DequantizeLinear(k, scale, zero)"""
        model = model_of(body, top=np.uint8(15))
        network, _ = network_of(model)
        assert [site.levels for site in network.sites] == [None, 15]
        x = numbers(8, 3, 5, 5)
        expected = run(model, {"x": x}, optimise=False)["y"]
        np.testing.assert_allclose(run(network.view.model, {"x": x})["y"], expected, atol=1e-5)

    @pytest.mark.parametrize("low", [-40, 20])
    def test_that_alone_stands_between_layers_is_a_clip(self, low: int) -> None:
        """A quantiser leaves out Clips of both signs too (hard tanh); with a range above 0 it is no rectifier at 0."""
        zero, least, most = np.uint8(100), np.uint8(100 + low), np.uint8(140)
        model = model_of(
            """q = QuantizeLinear(c, scale, zero) k = Clip(q, least, most) l = DequantizeLinear(k, scale, zero)
            d = Conv <pads = [1,1,1,1]> (l, v) p = Relu(d)""",
            zero,
            least=least,
            most=most,
            v=numbers(6, 6, 3, 3, scale=0.2),
        )
        network, _ = network_of(model)
        assert "Clip" in ops(network.view.model)
        x = numbers(8, 3, 5, 5, scale=2)
        expected, found = (run(net, {"x": x})["y"] for net in (model, network.view.model))
        np.testing.assert_allclose(found, expected, atol=0.1 * np.abs(expected).max())

    def test_takes_no_name_that_is_there(self) -> None:
        body = """t = Mul(c, taken) q = QuantizeLinear(t, scale, zero) k = Clip(q, zero, top)
            p = DequantizeLinear(k, scale, zero)"""
        model = model_of(body, top=np.uint8(15), taken=np.float32(2))
        first, _ = dequantise(normalise(model).model)
        (name, *_) = [tensor.name for tensor in first.graph.initializer if tensor.name.startswith("p/")]
        for node in model.graph.node:
            node.input[:] = [name if read == "taken" else read for read in node.input]
        (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == "taken")
        tensor.name = name
        x = numbers(8, 3, 5, 5)
        network, _ = network_of(model)
        expected = run(model, {"x": x}, optimise=False)["y"]
        np.testing.assert_allclose(run(network.view.model, {"x": x})["y"], expected, atol=1e-5)

    def test_of_the_input_in_another_layout_is_nothing(self) -> None:
        body = f"t = Transpose(x) {pair('t', 'u')} v = Transpose(u) d = Conv <pads = [1,1,1,1]> (v, w, b) p = Relu(d)"
        network, _ = network_of(model_of(body))
        assert [site.op_type for site in network.sites] == ["Relu"]

    def test_in_float16(self) -> None:
        text = f"""g (float16[N,3,5,5] x) => (float16[N,4] y) {{ c = Conv <pads = [1,1,1,1]> (x, w, b) {pair("c", "p")}
            g = GlobalAveragePool(p) f = Flatten(g) y = Gemm(f, m) }}"""
        half = {name: np.asarray(value, np.float16) for name, value in WEIGHTS.items()}
        network, changes = network_of(parse(text, opset=19, **half, zero=np.asarray(LOW)))
        assert [site.op_type for site in network.sites] == ["Clip"]
        assert changes["float16_to_float32"] == 6

    def test_may_have_several_readers(self) -> None:
        body = f"{pair('c', 'k')} l = DequantizeLinear(k_q, scale, zero) p = Add(k, l)"
        network, changes = network_of(model_of(body))
        assert changes["dequantise"] == 1
        assert [site.op_type for site in network.sites] == ["Clip"]

    def test_rounds_no_more_than_it_did(self) -> None:
        model = model_of(f"{pair('c', 'k')} n = Neg(k) a = Add(c, n) r = Relu(a) p = Add(k, r)")
        first = normalise(model).model
        single, count = dequantise(first)
        assert count == 1
        onnx.checker.check_model(single, full_check=True)
        x = numbers(8, 3, 5, 5, scale=0.5)
        gap = np.abs(run(single, {"x": x})["y"] - run(model, {"x": x})["y"]).max()
        assert 0 < gap < 6 * np.abs(WEIGHTS["m"]).max() * SCALE


@pytest.mark.parametrize(
    "body",
    [
        "q = QuantizeLinear(c, scale, zero) p = DequantizeLinear(q, other, zero)",
        "q = QuantizeLinear(c, scale, zero) i = Cast <to = 6> (q) p = DequantizeLinear(i, scale)",
        "q = QuantizeLinear <axis = 1> (c, scales, zeros) p = DequantizeLinear <axis = 1> (q, scales, zeros)",
        "s = ReduceMax <keepdims = 0> (c) a = Abs(s) q = QuantizeLinear(c, a, zero) p = DequantizeLinear(q, a, zero)",
    ],
    ids=["other scale", "other reader", "scale per channel", "scale that is computed"],
)
def test_what_is_no_pair_stays(body: str) -> None:
    constants = {"other": np.float32(0.1), "scales": np.full(6, SCALE), "zeros": np.zeros(6, np.uint8)}
    model = normalise(model_of(body, **constants)).model
    same, count = dequantise(model)
    assert count == 0
    assert same is model


def test_weights_are_numbers_before_anything_else() -> None:
    """Large ones, too, which take four times the bytes then, and of opsets that the reference does not begin with."""
    body = "u = DequantizeLinear <axis = 0> (v, s, z) k = Gemm(f, u)"
    text = f"g (float[N,600] f) => (float[N,600] k) {{ {body} }}"
    v = np.random.default_rng(0).integers(-127, 128, (600, 600)).astype(np.int8)
    s = np.linspace(0.01, 0.02, 600, dtype=np.float32)
    model = parse(text, opset=13, v=v, s=s, z=np.zeros(600, np.int8))
    normalised = normalise(model)
    assert normalised.changes["fold_constants"] == 1
    assert ops(normalised.model) == ["Gemm"]
    x = numbers(2, 600)
    np.testing.assert_allclose(run(normalised.model, {"f": x})["k"], run(model, {"f": x})["k"], rtol=1e-4, atol=1e-3)


def test_weights_of_4_bits() -> None:
    """Two to a byte, in blocks of 4 or with a scale per channel."""
    body = (
        "u = DequantizeLinear <axis = 0, block_size = 4> (v, s) k = DequantizeLinear <axis = 1> (v, t) d = Gemm(f, u)"
    )
    text = f"g (float[N,8] f) => (float[N,6] y) {{ {body} r = Relu(d) h = Gemm(f, k) y = Add(r, h) }}"
    model = parse(text, opset=21, s=np.abs(numbers(2, 6)) + 0.1, t=np.abs(numbers(6)) + 0.1)
    values = np.random.default_rng(0).integers(-8, 8, 48)
    model.graph.initializer.append(onnx.helper.make_tensor("v", onnx.TensorProto.INT4, [8, 6], values))
    normalised = normalise(model)
    assert normalised.changes["unpack"] == 2
    assert {tensor.data_type for tensor in normalised.model.graph.initializer} == {onnx.TensorProto.FLOAT}
    x = numbers(4, 8)
    np.testing.assert_allclose(run(normalised.model, {"f": x})["y"], run(model, {"f": x})["y"], rtol=1e-5, atol=1e-5)
    result = convert(model, numbers(64, 8), steps=4, neuron="signed-group")
    assert result.report["verification"]["bitwise"]


def test_weights_of_4_bits_in_a_node_or_elsewhere() -> None:
    """A Constant is read like an initializer; what no DequantizeLinear reads is refused."""
    text = "g (float[N,8] f) => (float[N,6] y) { %s u = DequantizeLinear <axis = 1> (w, t) d = Gemm(f, u) y = Relu(d) }"
    values = np.random.default_rng(0).integers(-8, 8, 48)
    packed = onnx.helper.make_tensor("v", onnx.TensorProto.INT4, [8, 6], values)
    inside = parse(text % "w = Constant<value_int=0>()", opset=21, t=np.abs(numbers(6)) + 0.1)
    inside.graph.node[0].CopyFrom(onnx.helper.make_node("Constant", [], ["w"], value=packed))
    x = numbers(4, 8)
    normalised = normalise(inside)
    assert ops(normalised.model) == ["Gemm", "Relu"]
    expected = run(inside, {"f": x}, optimise=False)["y"]  # with optimisations it multiplies in 8 bits
    np.testing.assert_allclose(run(normalised.model, {"f": x})["y"], expected, rtol=1e-5, atol=1e-5)
    moved = parse(text % "w = Identity(v)", opset=21, t=np.abs(numbers(6)) + 0.1)
    moved.graph.initializer.append(packed)
    with pytest.raises(ModelError, match="'v' is a constant of INT4 that no DequantizeLinear reads: export it as INT8"):
        normalise(moved)


def test_what_is_not_read_is_refused_with_what_to_do() -> None:
    body = """q = QuantizeLinear(c, scale, zero) p = DequantizeLinear(a, scale, zero)
        a = com.microsoft.QLinearReduceMean <axes = [2], keepdims = 1> (q, scale, zero, scale, zero)"""
    model = model_of(body)
    model.opset_import.add(domain="com.microsoft", version=1)
    said = r"QLinearReduceMean .*\(a network quantised in the QDQ format has standard operators\)"
    with pytest.raises(ModelError, match=said):
        convert(model, numbers(32, 3, 5, 5), steps=2)


def test_one_scale_for_a_whole_batch_is_refused_with_what_to_do() -> None:
    text = """g (float[N,3,5,5] x) => (float[N,4] y) { q, s, z = DynamicQuantizeLinear(x) d = DequantizeLinear(q, s, z)
        c = Conv <pads = [1,1,1,1]> (d, w, b) r = Relu(c) g = GlobalAveragePool(r) f = Flatten(g) y = Gemm(f, m) }"""
    said = r"DynamicQuantizeLinear '.*' has one scale for all of them\); quantise it with fixed scales"
    with pytest.raises(VerificationError, match=said):
        convert(parse(text, **WEIGHTS), numbers(32, 3, 5, 5) * np.float32([[[[1]]], [[[1000]]]] * 16), steps=2)
