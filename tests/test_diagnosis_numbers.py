"""Where ANN and SNN part: the numbers against brute force."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from diagnosis_cases import deep, diagnosed, smooth
from helpers import make_plan, numbers, parse, run
from networks import RESIDUAL, SPECS, THRESHOLDS, WEIGHTS, inputs, network_of, plan_of, random_plan, residual

from ftbc_onnx.diagnosis import CAUSES, Diagnosis
from ftbc_onnx.graph.emit import emit
from ftbc_onnx.graph.emit.unrolled import emit_unrolled, spikes_name
from ftbc_onnx.graph.observe import expose_tensors
from ftbc_onnx.neurons import NeuronSpec
from ftbc_onnx.plan import SpikingPlan


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
