"""How exporters write things, and what occurs in real files: converted with the whole proof, or refused by name."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from corpus.entry import Entry, text
from corpus.proof import assert_converges, assert_emission, assert_same_ann, convert
from helpers import newest_opset, numbers, parse, run

from ftbc_onnx import convert as whole
from ftbc_onnx.errors import ModelError
from ftbc_onnx.graph.free_batch import baked_reshapes
from ftbc_onnx.graph.normalise import normalise
from ftbc_onnx.graph.sites import Network, find_network

W = {
    "w": numbers(6, 8, seed=1, scale=0.5),
    "v": numbers(8, 8, seed=2, scale=0.4),
    "head": numbers(8, 3, seed=3, scale=0.5),
    "slopes": np.linspace(-0.3, 0.6, 8, dtype=np.float32),
    "zero": np.float32(0),
    "one": np.float32(1),
    "half": np.float32(0.5),
    "three": np.float32(3),
    "six": np.float32(6),
    "root": np.float32(np.sqrt(2)),
    "inner": np.float32(0.044715),
    "outer": np.float32(np.sqrt(2 / np.pi)),
}


def prove(entry: Entry) -> Network:
    if entry.opset > newest_opset():
        pytest.skip(f"opset {entry.opset} is newer than what the installed onnxruntime takes")
    model = entry.make()
    network = convert(model)
    assert_same_ann(entry, model, network)
    assert_emission(entry, model, network)
    assert_converges(network, entry, entry.feeds(model))
    return network


def kinds(network: Network) -> list[tuple[str, float | None, bool]]:
    return [(site.op_type, site.ceiling, site.signed) for site in network.sites]


def rows(body: str, opset: int = 17, inputs: str = "float[N,6] x", **more: object) -> Entry:
    """Two layers with an activation each: `body` makes a of c, then the same network goes on from a."""
    chain = f"c = MatMul(x, w) {body} d = MatMul(a, v) r = Relu(d) y = MatMul(r, head)"
    return text(body, inputs, "float[N,3] y", chain, opset=opset, **{**W, **more})


MASKS = {
    "added before a bias": "m = Add(h, mask) s = Add(m, b)",
    "added last": "n = Add(h, b) s = Add(n, mask)",
    "chosen before a bias": "m = Where(keep, h, least) s = Add(m, b)",
    "made of an input": "o = Sub(one, given) g = Mul(o, least) m = Add(h, g) s = Add(m, b)",
}


@pytest.mark.parametrize("least", [-1e4, -1e9, float(np.finfo(np.float32).min), -np.inf])
@pytest.mark.parametrize("how", MASKS)
def test_masked_scores_stay_means(how: str, least: float) -> None:
    """A bias behind the mask reaches the Softmax in time, and no neuron stands for -inf."""
    given = ", float[5,5] given" if "given" in MASKS[how] else ""
    if given and least == -np.inf:
        pytest.skip("the ANN gives NaN: 0 * inf")
    keep = np.tril(np.ones((5, 5), bool))
    text_ = f"""g (float[N,5,8] x{given}) => (float[N,5,8] y) {{
        e = MatMul(x, w) r = Relu(e) q = MatMul(r, v) k = MatMul(r, u) t = Transpose<perm=[0, 2, 1]>(k)
        h = MatMul(q, t) b = MatMul(r, p) {MASKS[how]} a = Softmax<axis=-1>(s) y = MatMul(a, r) }}"""
    constants = {
        **{name: numbers(8, 8, seed=n, scale=0.3) for n, name in enumerate("wvu")},
        "p": numbers(8, 5, seed=4, scale=0.3),
        "mask": np.where(keep, 0, np.float32(least)).astype(np.float32),
        "keep": keep,
        "least": np.float32(least),
        "one": np.float32(1),
    }
    used = {name: value for name, value in constants.items() if name in text_.replace("(", " ").replace(",", " ")}
    model, x = parse(text_, **used), numbers(32, 5, 8)
    feeds = {"x": x, **({"given": np.repeat(keep[None].astype(np.float32), 32, 0)} if given else {})}
    if given:
        model.graph.input[1].type.tensor_type.shape.dim.insert(0, model.graph.input[0].type.tensor_type.shape.dim[0])
    options = {"neuron": "signed-group", "levels": 15, "threshold": "max", "rule": "none"}
    report = whole(model, feeds, eval_data=feeds, steps=16, **options).report
    assert report["verification"]["bitwise"]
    assert report["evaluation"]["output_gap"][-1] < 0.02


def test_positions_are_no_activations() -> None:
    """What is made of the length of an activation is not what it is worth."""
    text_ = """g (float[N,L,8] x) => (float[N,L,4] y) {
        e = MatMul(x, w) t = Tanh(e) s = Shape(t) n = Gather(s, one) p = Range(zero, n, one) f = Cast<to=1>(p)
        u = Unsqueeze(f, axis) a = MatMul(u, frequencies) q = MatMul(t, v) y = Add(q, a) }"""
    constants = {
        "w": numbers(8, 8),
        "v": numbers(8, 4, seed=1),
        "frequencies": np.array([[1, 0.7, 2, 3]], np.float32),
        "axis": np.array([1]),
        "zero": np.int64(0),
        "one": np.int64(1),
    }
    network = find_network(normalise(parse(text_, **constants)).model)
    assert [site.op_type for site in network.sites] == ["Tanh"]


def test_parts_of_what_is_quantised_are_sites_of_their_own() -> None:
    """A node of several outputs before layers: each has its neurons, and a name."""
    halves = np.array([4, 4], np.int64)
    body = "s = Sigmoid(c) p, q = Split<axis=1>(s, halves) e = MatMul(p, up) f = MatMul(q, down) a = Add(e, f)"
    more = {"halves": halves, "up": numbers(4, 8, seed=5), "down": numbers(4, 8, seed=6)}
    network = prove(rows(body, **more))
    assert [site.op_type for site in network.sites] == ["Split", "Split", "Relu"]
    assert len({site.name for site in network.sites}) == 3


def test_channels_of_several_frames_are_not_those_of_one() -> None:
    """A Reshape behind a global pool that joins two frames: a height per channel does not go through."""
    text_ = """g (float[B,2,3,6,6] v) => (float[B,3] y) {
        x = Reshape(v, frames) c = Conv(x, k) r = Relu(c) p = GlobalAveragePool(r) f = Reshape(p, joined)
        y = Gemm<transB=1>(f, w) }"""
    constants = {
        "frames": np.array([-1, 3, 6, 6], np.int64),
        "joined": np.array([-1, 8], np.int64),
        "k": numbers(4, 3, 3, 3, seed=1),
        "w": numbers(3, 8, seed=2),
    }
    frames = numbers(16, 2, 3, 6, 6)
    found = {
        form: whole(parse(text_, **constants), frames, steps=3, neuron="if", form=form).report
        for form in ("fused", "unrolled")
    }
    assert found["fused"]["verification"]["bitwise"]
    gaps = [found[form]["evaluation"]["output_gap"] for form in found]
    np.testing.assert_allclose(*gaps, rtol=1e-4)


RECTIFIERS = {
    "ReLU6 and Hardtanh(0, 6)": ("a = Clip(c, zero, six)", "Clip", 6.0),
    "their bounds as nodes": ("l = Constant<value_float=0.0>() h = Constant<value_float=6.0>() a = Clip(c, l, h)",
                              "Clip", 6.0),
    "clamp(min=0), old exporter": ("a = Clip(c, zero)", "Clip", None),
    "clamp(min=0), new exporter": ("a = Max(c, zero)", "Max", None),
    "maximum with zeros like it": ("s = Shape(c) e = Expand(zero, s) a = Max(c, e)", "Max", None),
    "Keras' ReLU6": ("e = Relu(c) a = Min(e, six)", "Clip", 6.0),
}  # fmt: skip


@pytest.mark.parametrize("name", RECTIFIERS)
def test_rectifiers_as_they_are_exported(name: str) -> None:
    body, op_type, ceiling = RECTIFIERS[name]
    assert kinds(prove(rows(body))) == [(op_type, ceiling, False), ("Relu", None, False)]


SMOOTH = {
    "HardSwish": ("a = HardSwish(c)", 17),
    "HardSwish of HardSigmoid": ("e = HardSigmoid<alpha=0.16666667, beta=0.5>(c) a = Mul(c, e)", 13),
    "HardSigmoid": ("a = HardSigmoid<alpha=0.16666667, beta=0.5>(c)", 17),
    "SiLU": ("e = Sigmoid(c) a = Mul(c, e)", 17),
    "Swish": ("a = Swish(c)", 24),
    "Gelu": ("a = Gelu(c)", 20),
    "Gelu by tanh": ('a = Gelu<approximate="tanh">(c)', 20),
    "GELU as a chain of Erf": ("e = Div(c, root) f = Erf(e) g0 = Add(f, one) h = Mul(c, g0) a = Mul(h, half)", 17),
    "GELU as a chain of Tanh": ("e = Pow(c, three) f = Mul(e, inner) g0 = Add(c, f) h = Mul(g0, outer) k = Tanh(h) "
                                "l = Add(k, one) n = Mul(c, l) a = Mul(n, half)", 17),
    "LeakyRelu": ("a = LeakyRelu<alpha=0.1>(c)", 17),
    "PRelu with a slope per channel": ("a = PRelu(c, slopes)", 17),
    "Hardtanh": ("e = Neg(one) a = Clip(c, e, one)", 17),
    "Mish as a chain": ("e = Softplus(c) f = Tanh(e) a = Mul(c, f)", 13),
}  # fmt: skip


@pytest.mark.parametrize("name", SMOOTH)
def test_other_activations_as_they_are_exported(name: str) -> None:
    """Wherever the chain ends, what the next layer reads are spikes of both signs."""
    body, opset = SMOOTH[name]
    *_, signed, last = kinds(prove(rows(body, opset=opset)))
    assert signed[2]
    assert last == ("Relu", None, False)


def test_hardswish_below_opset_14_is_a_rectifier_times_its_input() -> None:
    network = prove(rows("e = Add(c, three) f = Clip(e, zero, six) h = Div(f, six) a = Mul(c, h)", opset=13))
    assert kinds(network) == [("Clip", 6.0, False), ("Relu", None, False)]


# batches


def test_a_batch_that_was_baked_into_reshapes_is_free_again() -> None:
    """The source runs with two samples only; what is converted computes what it does without its Reshapes."""
    baked = rows("e = Relu(c) f = Reshape(e, parts) n = Neg(f) a = Reshape(n, whole)",
                 parts=np.array([2, 4, 2]), whole=np.array([2, 8]))  # fmt: skip
    plain = rows("e = Relu(c) a = Neg(e)").make()
    network = convert(baked.make())
    feeds = baked.feeds(plain, 2)
    np.testing.assert_allclose(run(network.view.model, feeds)["y"], run(baked.make(), feeds)["y"], atol=1e-5)
    assert baked_reshapes(network.view) == []
    assert_same_ann(baked, plain, network)
    assert_emission(baked, plain, network)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_batch_that_the_file_fixes(batch: int) -> None:
    body = "e = Relu(c) f = Reshape(e, parts) a = Reshape(f, whole)"
    constants = {"parts": np.array([batch, 2, 4]), "whole": np.array([batch, 8])}
    model = rows(body, inputs=f"float[{batch},6] x", **constants).make()
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = batch
    network = prove(Entry("fixed", lambda: model, fixed_batch=batch, slope=-0.5, final=0.02))
    assert network.static_batch == batch


def test_a_batch_on_axis_1() -> None:
    """As in torch's TransformerEncoder: tokens come first inside."""
    body = (
        "t = Transpose<perm=[1,0,2]>(x) c = MatMul(t, w) r = Relu(c) b = Transpose<perm=[1,0,2]>(r) "
        "m = ReduceMean<axes=[1], keepdims=0>(b) d = MatMul(m, v) s = Relu(d) y = MatMul(s, head)"
    )
    network = prove(text("axis 1", "float[N,4,6] x", "float[N,3] y", body, **W))
    assert [(site.channel_axis, site.channels) for site in network.sites] == [(2, 8), (1, 8)]


# names


@pytest.mark.parametrize("name", ["", "node", "n/t0"])
def test_nodes_without_names_or_all_of_the_same(name: str) -> None:
    """onnxruntime refuses two nodes of one name: what is compared with has none."""
    entry = rows("e = Sigmoid(c) f = Mul(c, e) a = Relu(f)")
    model = entry.make()
    for node in model.graph.node:
        node.name = name
    network = convert(model)
    assert_same_ann(entry, entry.make(), network)
    assert_emission(entry, entry.make(), network)


def called_like(name: str, old: str = "d") -> onnx.ModelProto:
    model = rows("a = Relu(c)").make()
    for node in model.graph.node:
        node.input[:] = [name if each == old else each for each in node.input]
        node.output[:] = [name if each == old else each for each in node.output]
    for tensor in model.graph.initializer:
        tensor.name = name if tensor.name == old else tensor.name
    return model


@pytest.mark.parametrize("name", ["r/t1/membrane", "a/theta", "r/bias", "r/threshold"])
def test_a_tensor_that_is_called_like_an_emitted_one(name: str) -> None:
    prove(Entry(name, lambda: called_like(name)))


@pytest.mark.parametrize("name", ["r/bias", "r/threshold"])
def test_a_weight_with_a_name_that_the_file_is_read_back_by_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match=f"the tensor name '{name}' is taken twice: rename it in the source model"):
        prove(Entry(name, lambda: called_like(name, "v")))


# control flow and other domains

ELSE = "else_branch = o () => (float[N,8] q) { q = Neg(c) }"
CONTROL = {
    "If": f"k = ReduceMax<keepdims=0>(r) l = Greater(k, zero) z = If(l) <then_branch = t () => (float[N,8] p) "
          f"{{ p = Identity(c) }}, {ELSE}>",
    "If with spikes inside": f"k = ReduceMax<keepdims=0>(x) l = Greater(k, zero) z = If(l) <then_branch = t () => "
                             f"(float[N,8] p) {{ p = Identity(r) }}, {ELSE}>",
    "Loop": "z = Loop(trips, yes, r) <body = b (int64 i, bool go, float[N,8] e) => (bool on, float[N,8] o) "
            "{ on = Identity(go) o = Mul(e, half) }>",
    "Scan": "m, z = Scan(start, r) <num_scan_inputs=1, scan_input_axes=[1], scan_output_axes=[1], "
            "body = b (float[1] e, float[N] f) => (float[1] o, float[N] p) { o = Add(e, halves) p = Mul(f, o) }>",
}  # fmt: skip


@pytest.mark.parametrize("name", CONTROL)
def test_control_flow_on_spikes_is_refused_with_the_node_and_the_reason(name: str) -> None:
    body = f"g (float[N,6] x) => (float[N,3] y) {{ c = MatMul(x, w) r = Relu(c) {CONTROL[name]} y = MatMul(z, head) }}"
    model = parse(body, trips=np.int64(3), yes=np.array(True), start=np.zeros(1, np.float32),
                  halves=np.full(1, 0.5, np.float32), **W)  # fmt: skip
    onnx.checker.check_model(model)
    node = next(node for node in model.graph.node if node.op_type in ("If", "Loop", "Scan"))
    node.name = "branch_7"
    (refusal,) = find_network(normalise(model).model).refusals
    assert (refusal.node, refusal.op_type) == ("branch_7", node.op_type)
    assert "control flow that depends on spikes" in refusal.reason


def test_operators_of_an_optimised_file_are_refused_by_their_domain() -> None:
    body = "g (float[N,6] x) => (float[N,3] y) { c = com.microsoft.FusedMatMul(x, w) r = Relu(c) y = MatMul(r, head) }"
    (refusal,) = find_network(normalise(parse(body, domains='"com.microsoft" : 1', **W)).model).refusals
    assert (refusal.op_type, "com.microsoft" in refusal.reason) == ("FusedMatMul", True)


def test_initializers_listed_as_inputs() -> None:
    model = rows("a = Relu(c)").make()
    for tensor in model.graph.initializer:
        model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    network = prove(Entry("listed", lambda: model))
    assert [value.name for value in network.view.model.graph.input] == ["x"]
