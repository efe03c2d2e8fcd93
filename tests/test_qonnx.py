"""QONNX: its operators against plain NumPy, and networks of a few bits to spiking networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np
import onnx
import pytest
from helpers import numbers, ops, parse, run

from ftbc_onnx import ConvertConfig, ModelError, convert
from ftbc_onnx.graph.files import load
from ftbc_onnx.graph.normalise import default_opset
from ftbc_onnx.graph.qonnx import DOMAINS, standard_operators
from ftbc_onnx.inspection import inspect_model

DOMAIN = DOMAINS[0]
ROUNDINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "ROUND": np.rint,
    "HALF_EVEN": np.rint,
    "CEIL": np.ceil,
    "FLOOR": np.floor,
    "UP": lambda x: np.copysign(np.ceil(np.abs(x)), x),
    "DOWN": np.trunc,
    "HALF_UP": lambda x: np.copysign(np.floor(np.abs(x) + 0.5), x),
    "HALF_DOWN": lambda x: np.copysign(np.ceil(np.abs(x) - 0.5), x),
}
X = np.concatenate([np.arange(-120, 120).reshape(2, 120) * 0.125, numbers(2, 120, scale=3)]).astype(np.float32)


def model_of(
    body: str, opset: int = 17, domain: str = DOMAIN, version: int = 2, **constants: object
) -> onnx.ModelProto:
    """x [N,120] to y; `Q.` in the body stands for the domain."""
    held = {name: np.asarray(value, np.float32) for name, value in constants.items()}
    text = f"g (float[N,120] x) => (float[N,120] y) {{ {body.replace('Q.', domain + '.')} }}"
    return parse(text, opset=opset, domains=f'"{domain}" : {version}', **held)


def written(model: onnx.ModelProto) -> onnx.ModelProto:
    """In standard operators, and nothing else left of the domain."""
    result = standard_operators(model)
    assert {node.domain for node in result.graph.node} == {""}
    assert not any(entry.domain in DOMAINS for entry in result.opset_import)
    onnx.checker.check_model(result, full_check=True)
    return result


def computed(model: onnx.ModelProto) -> np.ndarray:
    return run(written(model), {"x": X}, optimise=False)["y"]


def quantised(
    bits: float, signed: int, narrow: int, *, mode: str = "ROUND", scale: object = 0.25, zero: float = 0
) -> np.ndarray:
    """The definition, in float32."""
    low, high = (-(2 ** (bits - 1)) + narrow, 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1 - narrow)
    units = X / np.asarray(scale, np.float32) + np.float32(zero)
    counted = ROUNDINGS[mode](np.clip(units, np.float32(low), np.float32(high)))
    return ((counted - np.float32(zero)) * np.asarray(scale, np.float32)).astype(np.float32)


class TestQuant:
    @pytest.mark.parametrize("mode", ROUNDINGS)
    @pytest.mark.parametrize("bits", [2, 3, 4, 7.5, 8, 9, 16])
    @pytest.mark.parametrize(("signed", "narrow"), [(0, 0), (0, 1), (1, 0), (1, 1)])
    def test_is_its_definition(self, mode: str, bits: float, signed: int, narrow: int) -> None:
        body = f'y = Q.Quant <signed = {signed}, narrow = {narrow}, rounding_mode = "{mode}"> (x, s, z, b)'
        for scale, zero in ((0.25, 0), (0.07, 2), (np.linspace(0.1, 0.5, 120), 0)):
            got = computed(model_of(body, s=scale, z=zero, b=bits))
            np.testing.assert_array_equal(got, quantised(bits, signed, narrow, mode=mode, scale=scale, zero=zero))

    def test_of_one_bit(self) -> None:
        """Signed: two values, one of them for 0. Unsigned: 0 and 1."""
        got = computed(model_of("y = Q.Quant <signed = 1> (x, s, z, b)", s=0.5, z=1, b=1))
        np.testing.assert_array_equal(got, np.where(X / np.float32(0.5) + 1 >= 0, 0, -1).astype(np.float32))
        got = computed(model_of("y = Q.Quant <signed = 0, narrow = 0> (x, s, z, b)", s=0.5, z=0, b=1))
        np.testing.assert_array_equal(got, quantised(1, 0, 0, scale=0.5))

    @pytest.mark.parametrize(
        ("bits", "signed", "narrow", "scale", "expected"),
        [
            (8, 0, 0, 0.25, "QuantizeLinear DequantizeLinear"),
            (4, 0, 0, 0.25, "QuantizeLinear Clip DequantizeLinear"),
            (8, 1, 1, 0.25, "QuantizeLinear Clip DequantizeLinear"),
            (9, 0, 0, 0.25, "Div Add Clip Round Sub Mul"),
            (8, 0, 0, np.full(120, 0.25), "Div Add Clip Round Sub Mul"),
        ],
    )
    def test_is_a_pair_where_it_can_be(self, bits: int, signed: int, narrow: int, scale: object, expected: str) -> None:
        body = f"y = Q.Quant <signed = {signed}, narrow = {narrow}> (x, s, z, b)"
        assert " ".join(ops(written(model_of(body, s=scale, z=0, b=bits)))) == expected

    @pytest.mark.parametrize("zero", [1, 37, 255])
    def test_with_an_odd_zero_point_differs_at_ties_only(self, zero: int) -> None:
        """QuantizeLinear rounds before it adds the zero point."""
        got = computed(model_of("y = Q.Quant <signed = 0> (x, s, z, b)", s=0.07, z=zero, b=8))
        expected = quantised(8, 0, 0, scale=0.07, zero=zero)
        tie = np.abs(X / np.float32(0.07) % 1 - 0.5) < 1e-4
        assert np.mean(tie) < 0.05
        np.testing.assert_array_equal(got[~tie], expected[~tie])

    @pytest.mark.parametrize("opset", [9, 11, 12, 21])
    @pytest.mark.parametrize("domain", DOMAINS)
    @pytest.mark.parametrize("op", ["Quant", "IntQuant"])
    def test_of_any_opset_domain_and_name(self, opset: int, domain: str, op: str) -> None:
        model = model_of(f"y = Q.{op} <signed = 1> (x, s, z, b)", opset, domain, s=0.25, z=0, b=4)
        np.testing.assert_array_equal(computed(model), quantised(4, 1, 0))
        assert default_opset(written(model)) == max(opset, 13)

    @pytest.mark.parametrize("kind", ["value = float {%s}", "value_float = %s"])
    def test_with_numbers_from_constant_nodes(self, kind: str) -> None:
        """As exporters without constant folding write them, with an Identity before some."""
        s, z, b = (f"Constant <{kind % number}> ()" for number in ("0.25", "0.0", "4.0"))
        body = f"""s = {s} z = {z} four = {b} b = Identity(four) y = Q.Quant <signed = 0> (x, s, z, b)"""
        np.testing.assert_array_equal(computed(model_of(body)), quantised(4, 0, 0))


class TestOthers:
    @pytest.mark.parametrize("scale", [1.0, 0.07, np.linspace(0.1, 0.5, 120)])
    def test_bipolar_quant(self, scale: object) -> None:
        got = computed(model_of("y = Q.BipolarQuant(x, s)", s=scale))
        np.testing.assert_array_equal(got, np.where(X >= 0, 1, -1).astype(np.float32) * np.asarray(scale, np.float32))

    @pytest.mark.parametrize("mode", ["FLOOR", "ROUND", "CEIL"])
    def test_trunc(self, mode: str) -> None:
        """4 of 8 bits dropped: version 1 by their number, version 2 by the scale of what is left, 16 times as large."""
        counted = np.rint(X / np.float32(0.125) + 4)
        body = f'y = Q.Trunc <rounding_mode = "{mode}"> (x, s, z, before, '
        first = computed(model_of(body + "after)", version=1, s=0.125, z=4, before=8, after=4))
        np.testing.assert_array_equal(first, (ROUNDINGS[mode](counted / 16) - 4) * np.float32(0.125))
        second = computed(model_of(body + "coarse, after)", s=0.125, z=4, before=8, coarse=2, after=4))
        np.testing.assert_array_equal(second, (ROUNDINGS[mode](np.clip(counted / 16, -8, 7)) - 0.25) * np.float32(2))

    def test_trunc_rounds_down_unless_it_says_otherwise(self) -> None:
        counted = np.rint(X / np.float32(0.125))
        got = computed(model_of("y = Q.Trunc(x, s, z, before, after)", version=1, s=0.125, z=0, before=8, after=6))
        np.testing.assert_array_equal(got, np.floor(counted / 4) * np.float32(0.125))


class TestWhatStays:
    @pytest.mark.parametrize(
        ("body", "operator"),
        [
            ("m = ReduceMax <keepdims = 0> (x) y = Q.Quant(x, s, s, m)", "Quant"),
            ('y = Q.Quant <rounding_mode = "STOCHASTIC"> (x, s, s, s)', "Quant"),
            ("y = Q.FloatQuant(x, s, s, s)", "FloatQuant"),
            ("y = Q.Quant(x, s, s)", "Quant"),
            ("y = Q.BipolarQuant(x)", "BipolarQuant"),
            ("m = ReduceMax <keepdims = 0> (x) y = Q.Trunc(x, s, s, s, m)", "Trunc"),
            ("m = ReduceMax <keepdims = 0> (x) y = Q.Trunc(x, s, s, m, s)", "Trunc"),
            ("m = ReduceMax <keepdims = 0> (x) y = Q.Trunc(x, s, s, s, m, s)", "Trunc"),
        ],
    )
    def test_is_refused_by_its_domain(self, body: str, operator: str) -> None:
        model = model_of(body, s=1.0)
        assert ops(standard_operators(model)) == ops(model)
        rectified = model_of(body.replace("y =", "k =") + " y = Relu(k)", s=1.0)
        with pytest.raises(ModelError, match=f"{operator} .* is of the domain '{DOMAIN}'"):
            convert(rectified, X, steps=2)

    def test_a_function_of_that_domain_is_inlined_as_ever(self) -> None:
        model = model_of("y = Q.Quant(x)")
        model.functions.append(
            onnx.parser.parse_function(
                f'<domain: "{DOMAIN}", opset_import: ["" : 17]> Quant (x) => (y) {{ y = Relu(x) }}'
            )
        )
        assert standard_operators(model) is model

    def test_a_model_without_such_operators_is_itself(self) -> None:
        model = parse("g (float[N,3] x) => (float[N,3] y) { y = Relu(x) }", opset=9)
        assert standard_operators(model) is model

    def test_a_function_of_the_model_is_no_operator_of_qonnx(self) -> None:
        """Whatever it is called, and whatever else there is."""
        function = f'<domain: "{DOMAIN}", opset_import: ["" : 17]> Quant (x, s, z, b) => (y) {{ y = Neg(x) }}'
        text = f"""g (float[N,120] x) => (float[N,120] y) {{ a = {DOMAIN}.Quant(x, s, z, b)
            y = {DOMAINS[2]}.Quant <signed = 1> (a, s, z, b) }}"""
        numbers_of = {"s": np.float32(0.25), "z": np.float32(0), "b": np.float32(4)}
        model = parse(text, domains=f'"{DOMAIN}" : 1, "{DOMAINS[2]}" : 1', **numbers_of)
        model.functions.append(onnx.parser.parse_function(function))
        result = standard_operators(model)
        assert ops(result) == ["Quant", "QuantizeLinear", "Clip", "DequantizeLinear"]
        got = run(result, {"x": X}, optimise=False)["y"]
        np.testing.assert_array_equal(got, (np.clip(np.rint(-X / np.float32(0.25)), -8, 7) * 0.25).astype(np.float32))

    def test_in_a_body_keeps_the_domain_for_it(self) -> None:
        body = """c = Q.Quant(x, s, z, b) m = ReduceMax <keepdims = 0> (c) g = Greater(m, z)
            y = If (g) <then_branch = t () => (float[N,120] p) { p = Q.Quant(c, s, z, b) },
                        else_branch = e () => (float[N,120] q) { q = Neg(c) }>"""
        source = load(model_of(body, s=0.25, z=0, b=4))
        assert DOMAIN in {entry.domain for entry in source.model.opset_import}
        assert ops(source.model)[:3] == ["QuantizeLinear", "Clip", "DequantizeLinear"]

    def test_without_an_output_is_not_valid(self) -> None:
        model = model_of("y = Q.Quant(x, s, z, b)", s=0.25, z=0, b=4)
        del model.graph.node[0].output[:]
        with pytest.raises(ModelError, match="is not valid ONNX"):
            load(model)

    def test_an_opset_whose_raising_adds_nodes(self) -> None:
        model = model_of(
            "k = Clip <min = -1.0, max = 1.0> (x) y = Q.Quant <signed = 1> (k, s, z, b)", 10, s=0.25, z=0, b=4
        )
        np.testing.assert_array_equal(computed(model), np.rint(np.clip(X, -1, 1) / 0.25).astype(np.float32) * 0.25)

    def test_an_opset_that_cannot_be_raised(self) -> None:
        model = model_of("k = Upsample(x, s) y = Q.Quant(k, s, s, s)", opset=7, s=1.0)
        with pytest.raises(ModelError, match="opset 7 could not be changed to 13"):
            standard_operators(model)


class TestNetwork:
    """Weights of 4 bits per channel, a BatchNormalization, activations of a few bits, an average pool."""

    NUMBERS: ClassVar = {
        "w": numbers(6, 3, 3, 3, scale=0.3),
        "ws": np.linspace(0.05, 0.1, 6, dtype=np.float32).reshape(6, 1, 1, 1),
        "m": numbers(4, 6, seed=1),
        "ms": np.float32(0.2),
        "s": np.float32(0.11),
        "ins": np.float32(0.03),
        "z": np.float32(0),
        "few": np.float32(4),
        "eight": np.float32(8),
        "many": np.float32(12),
        "ones": np.ones(6, np.float32),
        "shift": numbers(6),
        "spread": np.linspace(0.5, 2, 6, dtype=np.float32),
    }

    def model(self, bits: str = "few", opset: int = 17, rectifier: bool = True, signed: int = 0) -> onnx.ModelProto:
        body = f"""i = Q.Quant <signed = 1> (x, ins, z, eight)
            wq = Q.Quant <signed = 1, narrow = 1> (w, ws, z, few) c = Conv <pads = [1,1,1,1]> (i, wq)
            n = BatchNormalization(c, ones, shift, shift, spread) {"r = Relu(n)" if rectifier else "r = Identity(n)"}
            q = Q.Quant <signed = {signed}> (r, s, z, {bits}) p = GlobalAveragePool(q) f = Flatten(p)
            mq = Q.Quant <signed = 1, narrow = 1> (m, ms, z, few) y = Gemm <transB = 1> (f, mq)"""
        text = f"g (float[N,3,6,6] x) => (float[N,4] y) {{ {body.replace('Q.', DOMAIN + '.')} }}"
        return parse(text, opset=opset, domains=f'"{DOMAIN}" : 1', **self.NUMBERS)

    @pytest.mark.parametrize("opset", [11, 17])
    @pytest.mark.parametrize(("bits", "levels", "ceiling"), [("few", 15, None), ("eight", None, 255 * 0.11)])
    def test_sites_state_what_was_trained(
        self, opset: int, bits: str, levels: int | None, ceiling: float | None
    ) -> None:
        """4 bits are QCFS with 15 levels, 8 bits a ceiling; weights are numbers and take the BatchNormalization in."""
        found = inspect_model(self.model(bits, opset))
        (site,) = found["sites"]
        assert site["levels"] == levels
        if levels:
            np.testing.assert_allclose(site["threshold"], levels * 0.11, rtol=1e-6)
        else:
            assert site["ceiling"] == pytest.approx(ceiling)
        assert not found["refusals"]
        assert found["normalisation"]["fold_batchnorm"] == 1

    @pytest.mark.parametrize("bits", ["few", "eight", "many"])
    def test_a_site_is_called_what_the_quantiser_was(self, bits: str) -> None:
        """Whether it became a pair or arithmetic: --exclude can speak of it."""
        model = self.model(bits)
        node = next(node for node in model.graph.node if node.output[0] == "q")
        node.name = "act1"
        (site,) = inspect_model(model)["sites"]
        assert site["name"] == "act1"
        assert not inspect_model(model, ConvertConfig(exclude=("act1",)))["sites"]

    def test_a_rectifier_that_the_quantiser_is(self) -> None:
        (site,) = inspect_model(self.model("eight", rectifier=False))["sites"]
        assert site["op_type"] == "Clip"

    @pytest.mark.parametrize("kind", [np.float16, np.float64])
    def test_of_another_precision(self, kind: type[np.generic]) -> None:
        """All of it, QONNX's numbers too: computed in float32 like any other."""
        model = self.model()
        for tensor in model.graph.initializer:
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(kind), tensor.name))
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.elem_type = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind))
        found = inspect_model(model)
        assert not found["refusals"]
        (site,) = (
            site for site in found["sites"] if site["levels"]
        )  # and one at the input: there is no pair of that type
        assert site["levels"] == 15
        np.testing.assert_allclose(site["threshold"], 15 * 0.11, rtol=1e-3)

    @pytest.mark.parametrize("bits", ["few", "eight"])
    def test_converts_to_the_same_function(self, bits: str) -> None:
        """At 15 levels in all the spiking network is the quantised one; with 8 bits it is close to it."""
        counted = np.clip(np.rint(numbers(64, 3, 6, 6) / self.NUMBERS["ins"]), -128, 127)
        images = (counted * self.NUMBERS["ins"]).astype(
            np.float32
        )  # of 8 bits already: the pair at the input is left out
        model = self.model(bits)
        expected = run(load(model).model, {"x": images}, optimise=False)["y"]
        result = convert(model, images, steps=3, neuron="signed-group", levels=5, rule="none")
        assert result.report["verification"]["bitwise"]
        got = run(result.model, {"x": images})["y"]
        error = np.abs(got - expected).max() / np.abs(expected).max()
        assert error < (1e-5 if bits == "few" else 0.2)
