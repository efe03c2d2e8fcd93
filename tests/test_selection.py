"""What is chosen on calibration samples held back: the split, the judgement, the search of every site, the gate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers import numbers, run
from networks import CALIBRATION, QCFS, RELU, THRESHOLDS, inputs, network_of, plan_of, residual, source_of

from ftbc_onnx import ConfigError, ConvertConfig, convert, planning, selection
from ftbc_onnx.graph.emit.search import Candidate
from ftbc_onnx.graph.emit.unrolled import emit_unrolled, spikes_name
from ftbc_onnx.graph.observe import expose_tensors
from ftbc_onnx.graph.sites import Network
from ftbc_onnx.neurons import NeuronSpec
from ftbc_onnx.plan import SpikingPlan
from ftbc_onnx.rules import ROUGH, CalibrationRule, SolveRule
from ftbc_onnx.runtime import CPU
from ftbc_onnx.selection import Trial, as_good, candidates_for, choose_neuron, gate_biases, search_sites, split
from ftbc_onnx.verify import simulate


class TestSplit:
    def test_every_fourth_is_held_back_and_none_is_in_both(self) -> None:
        source = source_of(residual(), x=np.arange(40 * 32, dtype=np.float32).reshape(40, 2, 4, 4))
        fit, held = split(source, 40)
        assert held is not None
        rows = [next(part.batches(64)).feeds["x"][:, 0, 0, 0] / 32 for part in (fit, held)]
        assert (len(fit), len(held)) == (30, 10)
        assert sorted(np.concatenate(rows)) == list(range(40))
        assert np.diff(rows[1]).max() <= 5  # spread over the whole

    def test_of_fixed_batches_both_parts_are_whole_ones(self) -> None:
        fit, held = split(source_of(residual(), x=inputs(48)), 48, multiple=8)
        assert held is not None
        assert (len(fit) % 8, len(held) % 8) == (0, 0)

    def test_of_few_samples_nothing_is_held_back(self) -> None:
        source = source_of(residual(), x=inputs(15))
        assert split(source, 15) == (source, None)

    def test_only_the_samples_asked_for_are_used(self) -> None:
        fit, held = split(source_of(residual(), x=inputs(64)), 32)
        assert held is not None
        assert len(fit) + len(held) == 32


def trial(error: float, agreement: float | None = 100.0, events: float | None = None) -> Trial:
    return Trial("", error, agreement, events, 64)


class TestAsGood:
    @pytest.mark.parametrize(
        ("trials", "expected"),
        [
            ([trial(0.1), trial(0.19), trial(0.21)], [0, 1]),
            (
                [trial(0.1), trial(0.1, 98.5), trial(0.1, 90)],
                [0, 1],
            ),  # one of 64 samples is within an error, six are not
            ([trial(0.1, None), trial(0.15, None), trial(1, None)], [0, 1]),
            ([trial(0.1, 50), trial(0.3, 100)], [0]),  # nothing is both: the least error
        ],
    )
    def test_decisions_within_an_error_and_outputs_within_twice(
        self, trials: Sequence[Trial], expected: list[int]
    ) -> None:
        assert as_good(trials) == expected


class TestChooseNeuron:
    SPECS = candidates_for("accuracy", None, False)

    def choose(self, budget: str, errors: Sequence[float], events: Sequence[float] = ()) -> tuple[NeuronSpec, int]:
        found = dict(zip(map(str, self.SPECS), errors, strict=True))
        sent = dict(zip(map(str, self.SPECS), events, strict=False))
        seen: list[str] = []

        def judge(what: str, _plan: object) -> Trial:
            seen.append(what)
            return replace(trial(found[what], events=sent.get(what)), what=what)

        spec, selection = choose_neuron(self.SPECS, budget, lambda _spec: None, judge)  # type: ignore[arg-type]
        assert selection.trials[selection.chosen].what == str(spec)
        return spec, len(seen)

    def test_accuracy_takes_the_fewest_levels_of_those_as_good(self) -> None:
        assert self.choose("accuracy", (0.9, 0.4, 0.15, 0.1)) == (NeuronSpec("signed-group", 8), 3)

    def test_accuracy_stops_at_the_first_that_is_not(self) -> None:
        assert self.choose("accuracy", (0.1, 0.4, 0.3, 0.1)) == (NeuronSpec("signed-group", 15), 2)

    def test_spikes_takes_the_fewest_events(self) -> None:
        spec, seen = self.choose("spikes", (0.9, 0.15, 0.12, 0.1), (0.1, 0.3, 0.2, 0.4))
        assert (spec, seen) == (NeuronSpec("signed-group", 8), 4)

    def test_levels_takes_the_least_error(self) -> None:
        assert self.choose("levels", (0.9, 0.05, 0.12, 0.1))[0] == NeuronSpec("signed-group", 4)

    def test_candidates(self) -> None:
        assert candidates_for("accuracy", None, True) == (NeuronSpec("if"),)
        assert {spec.most for spec in candidates_for("levels", 6, False)} == {6}
        assert max(spec.most for spec in candidates_for("spikes", 4, False)) == 4
        assert candidates_for("accuracy", 4, False, synchronous=True) == (NeuronSpec("group", 4),)


@pytest.mark.parametrize("name", ["if", "signed-st", "signed-group"])
def test_search_keeps_what_a_numpy_loop_keeps(name: str) -> None:
    """Every site takes the best threshold on the currents that the sites before it send with the first."""
    network = network_of(residual())
    plan = plan_of(network, THRESHOLDS, 4).with_neuron(NeuronSpec(name, 4 if name == "signed-group" else 1))
    x = inputs(24, seed=5)
    factors = (1.0, 3.0, 0.3)
    tried = {
        site.name: [Candidate(plan.thresholds[site.name] * f, np.zeros((4, site.channels))) for f in factors]
        for site in plan.sites
    }
    kept = search_sites(network, plan, tried, {"x": x}, CPU)
    activations = simulate_activations(network, x)
    for site in plan.sites:
        errors = []
        for candidate in tried[site.name]:
            changed = {**plan.thresholds, site.name: candidate.threshold}
            spikes = spikes_of(network, plan.with_thresholds(changed), x, site.spikes)
            errors.append(float(((spikes.mean(0) - activations[site.spikes]) ** 2).mean()))
        assert kept[site.name] == int(np.argmin(errors))
    if name != "signed-group":
        assert len(set(kept.values())) > 1


def simulate_activations(network, x):
    return run(expose_tensors(network.view.model, [s.spikes for s in network.sites]), {"x": x}, optimise=False)


def spikes_of(network, plan, x, tensor):
    """Spikes of a site after every step, [T, B, ...]."""
    name = next(site.name for site in plan.sites if site.spikes == tensor)
    names = [spikes_name(name, t) for t in range(plan.steps)]
    found = run(expose_tensors(emit_unrolled(network, plan).model, names), {"x": x}, optimise=False)
    return np.stack([found[n] for n in names])


def test_search_with_a_rule_runs_it() -> None:
    network = network_of(residual())
    plan = plan_of(network, THRESHOLDS, 3)
    tried = {s.name: [Candidate(plan.thresholds[s.name] * f) for f in (0.2, 1.0)] for s in plan.sites}
    assert set(search_sites(network, plan, tried, {"x": inputs(16)}, CPU, rule=SolveRule())) == set(tried)


def test_the_gate_drops_biases_that_do_not_hold_and_keeps_those_that_do() -> None:
    network = network_of(residual())
    plan = plan_of(network, THRESHOLDS, 4)
    x = inputs(32, seed=3)
    good = convert(residual(), x, steps=4, neuron="if", threshold="max", gate=False, calib_samples=32).plan
    plan = plan.with_thresholds(good.thresholds)
    bad = {name: np.full_like(bias, 5.0) for name, bias in good.biases.items()}
    first, *rest = [site.name for site in plan.sites]
    mixed = plan.with_biases({first: bad[first], **{name: good.biases[name] for name in rest}})
    gated, dropped = gate_biases(network, mixed, {"x": x}, CPU)
    assert dropped >= 1
    assert not gated.biases[first].any()
    assert any(gated.biases[name].any() for name in rest)
    assert simulate(network, gated, {"x": x})["y"].shape[0] == 4


class TestConversions:
    def test_auto_says_what_it_tried_and_keeps_evaluation_data_out_of_it(self) -> None:
        first = convert(RELU, CALIBRATION, steps=2, calib_samples=64)
        other = convert(RELU, CALIBRATION, steps=2, calib_samples=64, eval_data=numbers(8, 1, 8, 8))
        assert first.plan == other.plan
        questions = [found["question"] for found in first.report["selections"]]
        assert questions == ["neuron", "threshold", "temporal bias"]
        for found in first.report["selections"]:
            assert 0 <= found["chosen"] < len(found["trials"])
        assert (first.report["calibration"]["samples"], first.report["calibration"]["held_back"]) == (48, 16)

    @pytest.mark.parametrize("neuron", ["auto", "signed-st"])
    def test_no_plan_is_calibrated_or_judged_twice(self, monkeypatch: pytest.MonkeyPatch, neuron: str) -> None:
        """What one question chose is the first that the next one tries."""
        calibrated, judged = [], []

        def calibrate(network: Network, plan: SpikingPlan, rule: CalibrationRule, *args: Any, **kw: Any) -> Any:
            calibrated.append((rule is ROUGH, plan.digest))
            return original(network, plan, rule, *args, **kw)

        def judge(self: selection.Judge, what: str, plan: SpikingPlan) -> selection.Trial:
            judged.append(plan.digest)
            return ask(self, what, plan)

        original, ask = planning.calibrate, selection.Judge.__call__
        monkeypatch.setattr(planning, "calibrate", calibrate)
        monkeypatch.setattr(selection.Judge, "__call__", judge)
        result = convert(RELU, CALIBRATION, steps=2, calib_samples=64, neuron=neuron, verify=False)
        answers = [trial for found in result.report["selections"] for trial in found["trials"]]
        assert len(set(calibrated)) == len(calibrated)
        assert len(set(judged)) == len(judged) < len(answers)
        assert len({trial["what"] for trial in answers}) == len(answers)  # every question in its own words

    def test_what_is_named_is_taken(self) -> None:
        result = convert(RELU, CALIBRATION, steps=2, neuron="group", levels=3, threshold="max", gate=False)
        assert result.plan.neuron == NeuronSpec("group", 3)
        assert result.report["selections"] == []
        assert result.report["calibration"]["samples"] == 256

    def test_the_published_rule_is_fitted_to_all_samples_where_thresholds_are_stated(self) -> None:
        """Nothing is chosen then, so nothing is held back."""
        options: dict[str, Any] = {"steps": 2, "neuron": "if", "rule": "paper", "calib_samples": 64, "batch_size": 16}
        for model, fitted, held in ((QCFS, 64, 0), (RELU, 48, 16)):
            found = convert(model, CALIBRATION, **options).report
            assert (found["calibration"]["samples"], found["calibration"]["held_back"]) == (fitted, held)
            assert bool(found["selections"]) == bool(held)

    def test_without_a_gate_nothing_is_held_back_for_gains(self) -> None:
        options: dict[str, Any] = {"steps": 2, "neuron": "if", "gate": False, "calib_samples": 64}
        for more, questions, held in (({}, [], 0), ({"gain": True}, ["gain"], 16)):
            found = convert(QCFS, CALIBRATION, **options, **more).report
            assert [one["question"] for one in found["selections"]] == questions
            assert found["calibration"]["held_back"] == held

    def test_binary_keeps_to_one_height(self) -> None:
        assert convert(RELU, CALIBRATION, steps=2, binary=True, calib_samples=32).plan.neuron == NeuronSpec("if")

    def test_budget_of_spikes_counts_events(self) -> None:
        result = convert(RELU, CALIBRATION, steps=2, budget="spikes", calib_samples=32)
        trials = result.report["selections"][0]["trials"]
        assert all(trial["events"] > 0 for trial in trials)

    def test_a_network_that_states_its_thresholds_needs_no_data(self) -> None:
        assert convert(QCFS, steps=2).plan.neuron == NeuronSpec("if")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"coding": "differential"}, "coding goes with a neuron that is named"),
            ({"neuron": "if", "binary": True}, "budget and binary go with --neuron auto"),
            ({"neuron": "if", "levels": 3}, "neuron 'if' has one level, not 3"),
            ({"levels": 0}, "levels is 0"),
            ({"gate": 1}, "gate is 1"),
            ({"budget": "speed"}, "budget is 'speed'"),
            ({"neuron": "multi-threshold", "levels": 17}, "at most 16 thresholds"),
        ],
    )
    def test_options_that_do_not_go_together(self, options: dict[str, object], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            ConvertConfig.from_options(options)
