"""Where ANN and SNN part: the numbers against brute force, and faults that were planted, found where they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import make_plan, numbers, parse, run
from networks import (
    CALIBRATION,
    QCFS,
    RELU,
    RESIDUAL,
    SPECS,
    TEST,
    THRESHOLDS,
    WEIGHTS,
    batches_of,
    digits,
    inputs,
    network_of,
    plan_of,
    random_plan,
    residual,
    source_of,
)
from onnx import numpy_helper

from ftbc_onnx import ConvertConfig, DataError, ModelError, convert
from ftbc_onnx.diagnosis import CAUSES, Diagnosis, diagnose, diagnose_file
from ftbc_onnx.graph.altered import altered_weights
from ftbc_onnx.graph.emit import emit
from ftbc_onnx.graph.emit.unrolled import bias_name, emit_unrolled, spikes_name, threshold_name
from ftbc_onnx.graph.observe import expose_tensors
from ftbc_onnx.graph.recorder import time_loop
from ftbc_onnx.graph.view import subgraphs
from ftbc_onnx.neurons import NeuronSpec
from ftbc_onnx.plan import SpikingPlan
from ftbc_onnx.remedies import SMALL, remedies, suspects, verdict
from ftbc_onnx.runtime import CPU
from ftbc_onnx.trials import with_neuron

Files = tuple[Path, Path, Path]
"""A spiking network, its ANN, and data."""

DEEP = """
deep (float[N,3,12,12] x) => (float[N,5] y) {
    c1 = Conv<pads=[1,1,1,1]>(x, w1, b1)
    r1 = Relu(c1)
    n1 = BatchNormalization(r1, scale, shift, mean, var)
    c2 = Conv<pads=[1,1,1,1]>(n1, w2)
    r2 = Relu(c2)
    p2 = MaxPool<kernel_shape=[2,2],strides=[2,2]>(r2)
    c3 = Conv<pads=[1,1,1,1]>(p2, w3)
    a3 = Add(c3, p2)
    r3 = Relu(a3)
    k3 = Concat<axis=1>(r3, p2)
    c4 = Conv(k3, w4)
    r4 = Relu(c4)
    p4 = GlobalAveragePool(r4)
    f4 = Flatten(p4)
    y = Gemm<transB=1>(f4, w5)
}
"""
"""A BatchNormalization that cannot be folded, a MaxPool, a sum and a Concat that skip."""


def deep() -> onnx.ModelProto:
    rng = np.random.default_rng(7)

    def weights(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)

    return parse(
        DEEP,
        w1=weights(8, 3, 3, 3),
        b1=numbers(8, seed=1, scale=0.1),
        scale=rng.uniform(0.8, 1.2, 8).astype(np.float32),
        shift=numbers(8, seed=2, scale=0.1),
        mean=rng.uniform(0.2, 0.6, 8).astype(np.float32),
        var=rng.uniform(0.5, 1.5, 8).astype(np.float32),
        w2=weights(8, 8, 3, 3),
        w3=weights(8, 8, 3, 3),
        w4=weights(12, 16, 1, 1),
        w5=weights(5, 12),
    )


SMOOTH = """
smooth (float[N,4] x) => (float[N,3] y) {
    h1 = Gemm<transB=1>(x, w1)
    s1 = Sigmoid(h1)
    h2 = Gemm<transB=1>(s1, w2)
    r2 = Relu(h2)
    q2 = Mul(r2, r2)
    h3 = Gemm<transB=1>(q2, w3)
    y = Softmax<axis=1>(h3)
}
"""


def smooth() -> onnx.ModelProto:
    return parse(SMOOTH, w1=numbers(6, 4), w2=numbers(6, 6, seed=1), w3=numbers(3, 6, seed=2))


def diagnosed(model: onnx.ModelProto, plan: SpikingPlan, x: np.ndarray, batch: int = 64) -> Diagnosis:
    return diagnose(network_of(model), plan, source_of(model, x=x), batches_of(batch), device=CPU)


class TestNumbers:
    """Against spikes of the emitted network, neurons in NumPy, and networks written out for the purpose."""

    STEPS = 5

    @pytest.fixture(scope="class")
    @classmethod
    def plan(cls) -> SpikingPlan:
        plan = plan_of(network_of(residual()), THRESHOLDS, cls.STEPS)
        rng = np.random.default_rng(2)
        return plan.with_biases({s.name: rng.normal(0, 0.2, (cls.STEPS, s.channels)) for s in plan.sites})

    @pytest.fixture(scope="class")
    @classmethod
    def found(cls, plan: SpikingPlan) -> Diagnosis:
        return diagnosed(residual(), plan, inputs(12), batch=5)

    @pytest.fixture(scope="class")
    @classmethod
    def ann(cls) -> dict[str, np.ndarray]:
        return run(expose_tensors(residual(), ["c1", "c2", "a3", "r1", "r2", "r3"]), {"x": inputs(12)})

    @pytest.fixture(scope="class")
    @classmethod
    def spikes(cls, plan: SpikingPlan) -> dict[str, np.ndarray]:
        """[T, N, C, H, W] per site."""
        names = {s.name: [spikes_name(s.name, t) for t in range(cls.STEPS)] for s in plan.sites}
        emitted = emit_unrolled(network_of(residual()), plan).model
        values = run(
            expose_tensors(emitted, [tensor for listed in names.values() for tensor in listed]), {"x": inputs(12)}
        )
        return {name: np.stack([values[tensor] for tensor in listed]) for name, listed in names.items()}

    def rate(self, spikes: np.ndarray) -> np.ndarray:
        return np.cumsum(spikes, axis=0) / np.arange(1, self.STEPS + 1).reshape(-1, 1, 1, 1, 1)

    def test_error_with_upstream_as_it_is(self, found, plan, ann, spikes) -> None:
        for site, diagnosis in zip(plan.sites, found.sites, strict=True):
            a = ann[site.spikes]
            gap = np.abs(self.rate(spikes[site.name]) - a).reshape(self.STEPS, -1).sum(1)
            np.testing.assert_allclose(diagnosis.real, gap / np.abs(a).sum(), rtol=1e-5)

    def alone(self, plan: SpikingPlan, ann: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Rates after every step of neurons that get the ANN's currents, by site: [T, N, C, H, W]."""
        rates = {}
        for site in plan.sites:
            neuron, shape = plan.neuron_of(site), site.channel_shape
            unit = neuron.unit(plan.thresholds[site.name].reshape(shape))
            state, fired = neuron.initial_state(unit), []
            for bias in plan.biases[site.name]:
                s, state = neuron.step(ann[site.current], state, unit, bias.reshape(shape))
                fired.append(s)
            rates[site.name] = self.rate(np.stack(fired))
        return rates

    def test_error_with_upstream_exact(self, found, plan, ann) -> None:
        rates = self.alone(plan, ann)
        for site, diagnosis in zip(plan.sites, found.sites, strict=True):
            a = ann[site.spikes]
            gap = np.abs(rates[site.name] - a).reshape(self.STEPS, -1).sum(1)
            np.testing.assert_allclose(diagnosis.alone, gap / np.abs(a).sum(), rtol=1e-5)

    def test_at_the_first_site_both_are_the_same(self, found) -> None:
        np.testing.assert_array_equal(found.sites[0].alone, found.sites[0].real)
        assert not np.allclose(found.sites[1].alone, found.sites[1].real, rtol=1e-2)

    def forced(self, spikes: dict[str, np.ndarray], plan: SpikingPlan) -> dict[str, np.ndarray]:
        """What every site adds: its rate, less the ReLU of the current that the rates upstream make."""
        r1, r2, r3 = (self.rate(spikes[s.name])[-1].astype(np.float32) for s in plan.sites)
        text = RESIDUAL.replace("Conv<pads=[1,1,1,1]>(r1,", "Conv<pads=[1,1,1,1]>(f1,")
        text = (
            text.replace("Conv(r2,", "Conv(f2,")
            .replace("Add(c3, r1)", "Add(c3, f1)")
            .replace("(float[N,3] y)", "(float[N,4,4,4] r1, float[N,4,4,4] r2, float[N,4,4,4] r3)")
        )
        text = text.replace("float[N,2,4,4] x", "float[N,2,4,4] x, float[N,4,4,4] f1, float[N,4,4,4] f2")
        made = run(parse(text, **WEIGHTS), {"x": inputs(12), "f1": r1, "f2": r2})
        return {"d1": r1 - made["r1"], "d2": r2 - made["r2"], "d3": r3 - made["r3"]}

    def test_what_a_site_adds_and_what_it_costs(self, found, plan, ann, spikes) -> None:
        added = self.forced(spikes, plan)
        for site, diagnosis, d in zip(plan.sites, found.sites, added.values(), strict=True):
            assert diagnosis.local == pytest.approx(np.abs(d).sum() / np.abs(ann[site.spikes]).sum(), rel=1e-4)
        text = RESIDUAL
        for k in "123":
            text = text.replace(f"    r{k} = Relu(", f"    f{k} = Relu(").replace(
                f"\n    c{int(k) + 1} ", f"\n    r{k} = Add(f{k}, d{k})\n    c{int(k) + 1} ", 1
            )
        text = text.replace("\n    p =", "\n    r3 = Add(f3, d3)\n    p =")
        text = text.replace("float[N,2,4,4] x", "float[N,2,4,4] x, " + ", ".join(f"float[N,4,4,4] d{k}" for k in "123"))
        model, y = parse(text, **WEIGHTS), ann["y"]

        def error(feeds: dict[str, np.ndarray]) -> tuple[float, float]:
            made = run(model, {"x": inputs(12), **feeds})["y"]
            return float(np.abs(made - y).mean()), float((made.argmax(1) == y.argmax(1)).mean() * 100)

        whole, agreement = error(added)
        snn = run(emit_unrolled(network_of(residual()), plan).model, {"x": inputs(12)})["y"]
        assert whole == pytest.approx(np.abs(snn - y).mean(), rel=1e-4)
        size = np.abs(y).mean()
        assert found.output_error[-1] == pytest.approx(whole / size, rel=1e-4)
        assert found.agreement == pytest.approx(agreement)
        rates = self.alone(plan, ann)
        nothing = {name: np.zeros_like(d) for name, d in added.items()}
        costs = []
        for name, diagnosis in zip(added, found.sites, strict=True):
            without, _ = error({**added, name: nothing[name]})
            assert diagnosis.spared == pytest.approx((whole - without) / size, abs=1e-5)
            own = rates[diagnosis.site.name][-1].astype(np.float32) - ann[diagnosis.site.spikes]
            cost, agrees = error({**nothing, name: own})
            assert diagnosis.cost == pytest.approx(cost / size, rel=1e-4)
            assert diagnosis.turned == pytest.approx(100 - agrees)
            costs.append(cost)
        np.testing.assert_allclose([s.share for s in found.sites], np.square(costs) / np.square(costs).sum(), rtol=1e-3)
        assert [s.cost for s in found.ranked] == sorted((s.cost for s in found.sites), reverse=True)

    def test_causes_are_what_a_site_adds(self, found) -> None:
        for site in found.sites:
            assert tuple(site.causes) == CAUSES
            assert sum(site.causes.values()) == pytest.approx(site.local)
            assert min(site.causes.values()) >= 0

    def test_clipping(self) -> None:
        """Neurons with a threshold of 1, and currents of 1/2 and 3: of the error, 2 of 2."""
        model = parse("g (float[N,2] x) => (float[N,2] y) { r = Relu(x) y = Identity(r) }")
        plan = make_plan(network_of(model), 4)
        (site,) = diagnosed(model, plan, np.array([[0.5, 3.0]], np.float32)).sites
        assert site.causes["clipping"] == pytest.approx(2 / 3.5)
        assert (site.clipped, site.silent, site.worst) == (1, 0, ((1, 1.0),))

    def test_a_channel_that_never_fires(self) -> None:
        model = parse("g (float[N,2] x) => (float[N,2] y) { r = Relu(x) y = Identity(r) }")
        name = network_of(model).sites[0].name
        plan = make_plan(network_of(model), 4, {name: np.array([1, 100], np.float32)})
        (site,) = diagnosed(model, plan, np.array([[0.5, 3.0]], np.float32)).sites
        assert site.causes["silent"] == pytest.approx(3 / 3.5)
        assert (site.clipped, site.silent) == (0, 1)

    def test_biases_that_do_harm(self) -> None:
        model = residual()
        large = {name: 8 * theta for name, theta in THRESHOLDS.items()}
        plan = plan_of(network_of(model), large, 8).with_neuron(NeuronSpec("signed-group", 8))
        middle = plan.sites[1]
        spoilt = plan.with_biases({middle.name: np.full((8, middle.channels), 0.5)})
        worst = diagnosed(model, spoilt, inputs(12)).sites[1]
        assert worst.cause == "bias"
        assert diagnosed(model, plan, inputs(12)).sites[1].causes["bias"] == 0


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("network", [residual, deep, smooth])
def test_the_ann_with_what_every_site_adds_is_the_snn(network: Callable[[], onnx.ModelProto], spec: NeuronSpec) -> None:
    """Whatever the neuron, through sums, maxima, products and functions that are no rectifiers."""
    model = network()
    plan = random_plan(network_of(model), spec)
    gained = {plan.sites[-1].name: np.full(plan.sites[-1].channels, 1.25)}
    x = numbers(6, *[axis.dim_value for axis in model.graph.input[0].type.tensor_type.shape.dim][1:])
    for some in (plan, plan.with_gains(gained)):
        found = diagnosed(model, some, x)
        assert found.output_error[-1] > 1e-3
        assert found.tail < 1e-5
        expected = run(emit(network_of(model), some).model, {"x": x})["y"]
        ann = run(model, {"x": x})["y"]
        assert found.output_error[-1] == pytest.approx(np.abs(expected - ann).mean() / np.abs(ann).mean(), rel=1e-4)


# planted faults


def edit(path: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Change an initializer of a file, in the body of its loop too."""
    model = onnx.load(path)
    loop = time_loop(model)
    graphs = [model.graph, *([] if loop is None else subgraphs(loop))]
    tensors = [t for graph in graphs for t in graph.initializer if t.name in (name, f"{name}/inside")]
    assert tensors
    for tensor in tensors:
        value = change(numpy_helper.to_array(tensor).copy()).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    onnx.save(model, path)


def statistics(value: np.ndarray) -> np.ndarray:
    """A scale or shift of a BatchNormalization that was put together from other statistics."""
    return value * 3 + 1


def too_high(theta: np.ndarray) -> np.ndarray:
    """The first channel never fires."""
    theta[0] *= 1e6
    return theta


OPTIONS = {"threshold": "mse", "neuron": "signed-group", "levels": 8, "verify": False}
X = numbers(96, 3, 12, 12, seed=5)


@pytest.fixture(scope="module", params=["digits", "residual", "deep"])
def healthy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A file that is as it should be, its ANN, and data."""
    folder = tmp_path_factory.mktemp(request.param)
    ann, data = RELU, CALIBRATION
    if request.param != "digits":
        ann, data = folder / "ann.onnx", folder / "data.npz"
        onnx.save({"residual": residual, "deep": deep}[request.param](), ann)
        np.savez(data, x=X if request.param == "deep" else inputs(96))
    convert(ann, data, steps=8, **OPTIONS).save(folder / "snn.onnx")
    return folder / "snn.onnx", ann, data


@pytest.fixture
def spoilt(healthy: Files, tmp_path: Path) -> Files:
    """A copy of the file, to be spoilt."""
    target = tmp_path / "spoilt.onnx"
    target.write_bytes(healthy[0].read_bytes())
    return target, *healthy[1:]


def test_a_healthy_network_is_not_accused(healthy: Files) -> None:
    found = diagnose_file(*healthy)
    assert found.output_error[-1] < SMALL
    assert suspects(found) == []
    (said,) = verdict(found)
    assert "follows its ANN" in said
    assert "no site is accused" in said
    assert remedies(found, ConvertConfig(**OPTIONS)) == []


@pytest.mark.parametrize("place", ["first", "second", "third", "last"])
@pytest.mark.parametrize(
    ("fault", "cause"), [(lambda theta: theta * 0.1, "clipping"), (too_high, "silent")], ids=["low", "dead"]
)
def test_the_planted_site_is_named_first(spoilt: Files, fault, cause: str, place: str) -> None:
    sites = [site.site.name for site in diagnose_file(*spoilt, samples=1).sites]
    planted = sites[{"first": 0, "second": 1, "third": 2, "last": -1}[place]]
    edit(spoilt[0], threshold_name(planted), fault)
    found = diagnose_file(*spoilt)
    first = found.ranked[0]
    assert (first.site.name, first.cause) == (planted, cause)
    assert first.share > 0.5
    said = remedies(found, ConvertConfig(**OPTIONS))
    assert (said[0].site, said[0].cause) == (planted, cause)
    assert any(planted in sentence for sentence in verdict(found))
    if cause == "silent":
        assert first.silent == 1
        assert first.worst[0][0] == 0


@pytest.fixture(scope="module")
def binary() -> SpikingPlan:
    """Integrate-and-fire on the digits: rounding alone costs a lot."""
    return convert(RELU, CALIBRATION, steps=4, neuron="if", threshold="mse", verify=False).plan


@pytest.mark.parametrize("number", range(4))
def test_a_low_threshold_stands_out_of_coarse_neurons(binary: SpikingPlan, number: int) -> None:
    network = network_of(onnx.load(RELU))
    planted = binary.sites[number].name
    thresholds = {**binary.thresholds, planted: binary.thresholds[planted] / 10}
    source = source_of(network.view.model, image=digits("calibration", 64)[0])
    found = diagnose(network, binary.with_thresholds(thresholds), source, batches_of(64), device=CPU)
    assert (found.ranked[0].site.name, found.ranked[0].cause) == (planted, "clipping")
    assert [site.site.name for site in suspects(found)] == [planted]


class TestOtherWeights:
    """Weights of the file are not the ANN's: the site behind them is named, with the name of the weights."""

    @pytest.fixture(scope="class", params=["unrolled", "loop"])
    @classmethod
    def clean(cls, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Files:
        folder = tmp_path_factory.mktemp(request.param)
        onnx.save(deep(), folder / "ann.onnx")
        np.savez(folder / "data.npz", x=X)
        result = convert(folder / "ann.onnx", folder / "data.npz", steps=4, form=request.param, **OPTIONS)
        result.save(folder / "snn.onnx")
        return folder / "snn.onnx", folder / "ann.onnx", folder / "data.npz"

    @pytest.mark.parametrize(
        ("weights", "number"), [("n1/scale", 1), ("n1/shift", 1), ("w1", 0), ("w2", 1), ("w3", 2), ("w4", 3)]
    )
    def test_an_unfolded_batchnorm_or_a_layer(self, clean: Files, tmp_path: Path, weights: str, number: int) -> None:
        target = tmp_path / "spoilt.onnx"
        target.write_bytes(clean[0].read_bytes())
        edit(target, weights, statistics)
        found = diagnose_file(target, *clean[1:])
        first = found.ranked[0]
        assert first is found.sites[number]
        assert first.cause == "weights"
        assert found.altered == (weights,)
        assert found.rerun is not None
        assert found.rerun < 1e-3  # the graph runs what the file holds
        assert f"({weights})" in verdict(found)[0]
        assert remedies(found, ConvertConfig(**OPTIONS))[0].sentence.endswith("convert the ANN again")
        assert first.alone[-1] > 0.3  # with upstream exact, its own layer is what is wrong
        for site in found.sites[:number]:
            assert site.real[-1] < 0.2
            assert site.causes["weights"] < 1e-6

    def test_behind_the_last_site(self, clean: Files, tmp_path: Path) -> None:
        target = tmp_path / "spoilt.onnx"
        target.write_bytes(clean[0].read_bytes())
        edit(target, "w5", lambda value: -value)
        found = diagnose_file(target, *clean[1:])
        assert found.tail > 1
        assert any("behind the last site" in said for said in verdict(found))

    def test_a_file_whose_nodes_were_changed(self, clean: Files, tmp_path: Path) -> None:
        model = onnx.load(clean[0])
        body = next(iter(subgraphs(loop))) if (loop := time_loop(model)) is not None else model.graph
        node = next(node for node in body.node if node.op_type == "Concat" and "k3" in node.output[0])
        node.input[0], node.input[1] = node.input[1], node.input[0]
        onnx.save(model, tmp_path / "spoilt.onnx")
        found = diagnose_file(tmp_path / "spoilt.onnx", *clean[1:])
        assert any("does not compute what its plan says" in said for said in verdict(found))

    def test_nothing_is_altered_in_a_clean_file(self, clean: Files) -> None:
        assert altered_weights(network_of(deep()), onnx.load(clean[0])) == {}

    def test_a_weight_of_another_shape_is_refused(self, clean: Files, tmp_path: Path) -> None:
        target = tmp_path / "spoilt.onnx"
        target.write_bytes(clean[0].read_bytes())
        edit(target, "w5", lambda _: np.zeros((2, 2)))
        with pytest.raises(ModelError, match=r"'w5' is \(2, 2\) in the spiking network and \(5, 12\) in the ANN"):
            diagnose_file(target, *clean[1:])


class TestRefusals:
    def test_a_synchronous_network(self, tmp_path: Path) -> None:
        snn = convert(QCFS, steps=2, schedule="synchronous", neuron="if").save(tmp_path / "snn.onnx")
        with pytest.raises(ModelError, match="no steps to compare: convert with --schedule asynchronous"):
            diagnose_file(snn, QCFS, TEST)

    def test_another_ann(self, healthy: Files) -> None:
        with pytest.raises(ModelError, match="was not made from"):
            diagnose_file(healthy[0], QCFS, healthy[2])

    def test_an_output_that_is_not_finite(self) -> None:
        model = parse(
            "g (float[N,2] x) => (float[N,2] y) { r = Relu(x) y = Div(r, zero) }", zero=np.zeros(2, np.float32)
        )
        with pytest.raises(DataError, match="output 'y' is not finite"):
            diagnosed(model, make_plan(network_of(model), 2), np.ones((2, 2), np.float32))


def test_every_form_of_a_plan_is_diagnosed_alike(tmp_path: Path) -> None:
    """The step form is looked at as the others are, but not run."""
    forms = {}
    for form in ("unrolled", "fused", "folded", "step"):
        snn = convert(RELU, CALIBRATION, steps=2, form=form, **OPTIONS).save(tmp_path / f"{form}.onnx")
        forms[form] = diagnose_file(snn, RELU, TEST, batch_size=7, samples=20)
    for form, found in forms.items():
        np.testing.assert_array_equal(found.output_error, forms["unrolled"].output_error)
        assert (found.samples, found.altered) == (20, ())
        assert found.rerun is None if form == "step" else found.rerun < 1e-3


def test_a_network_with_a_fixed_batch(tmp_path: Path) -> None:
    text = RESIDUAL.replace("float[N,", "float[4,")
    onnx.save(parse(text, **WEIGHTS), tmp_path / "ann.onnx")
    x = inputs(12)
    snn = convert(tmp_path / "ann.onnx", x, steps=2, **OPTIONS).save(tmp_path / "snn.onnx")
    found = diagnose_file(snn, tmp_path / "ann.onnx", x, samples=8)
    assert found.samples == 8
    y, ann = (run(onnx.load(tmp_path / name), {"x": x[:4]})["y"] for name in ("snn.onnx", "ann.onnx"))
    first = diagnose_file(snn, tmp_path / "ann.onnx", x[:4])
    assert first.output_error[-1] == pytest.approx(np.abs(y - ann).mean() / np.abs(ann).mean(), rel=1e-4)


def test_plain_form_is_json_with_the_sites_in_order_of_rank(healthy: Files) -> None:
    found = diagnose_file(*healthy, samples=16)
    plain = json.loads(json.dumps(found.as_dict()))
    assert [site["site"] for site in plain["sites"]] == [site.site.name for site in found.ranked]
    assert [len(site["error"]) for site in plain["sites"]] == [8] * len(found.sites)


def test_thresholds_that_the_model_states_are_changed_there(tmp_path: Path) -> None:
    snn = convert(QCFS, steps=4).save(tmp_path / "snn.onnx")
    site = diagnose_file(snn, QCFS, TEST, samples=1).sites[1].site.name
    edit(snn, threshold_name(site), lambda theta: theta * 0.1)
    found = diagnose_file(snn, QCFS, TEST)
    first = remedies(found, with_neuron(ConvertConfig(steps=4), found.plan))[0]
    assert (first.site, first.cause) == (site, "clipping")
    assert "the model states its threshold" in first.sentence


def test_biases_in_the_file_are_what_is_looked_at(spoilt: Files) -> None:
    before = diagnose_file(*spoilt)
    planted = before.sites[1].site.name
    edit(spoilt[0], bias_name(planted), lambda bias: bias + 0.7)
    found = diagnose_file(*spoilt)
    assert (found.ranked[0].site.name, found.ranked[0].cause) == (planted, "bias")
