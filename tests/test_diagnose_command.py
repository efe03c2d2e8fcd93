"""`ftbc-onnx diagnose`: what it prints, the sentences, and --try."""

from __future__ import annotations

import io
import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_cases import Caller, call, fails  # noqa: F401 - call is a fixture
from networks import CALIBRATION, QCFS, RELU, TEST, digits
from onnx import numpy_helper
from rich.console import Console

from ftbc_onnx import ConvertConfig, DataError, convert, trials
from ftbc_onnx.cli import cli
from ftbc_onnx.diagnosis import Diagnosis, SiteDiagnosis, diagnose_file
from ftbc_onnx.job import Job
from ftbc_onnx.neurons import NeuronSpec
from ftbc_onnx.plan import SpikingPlan, SpikingSite
from ftbc_onnx.planning import Planned, make_plan
from ftbc_onnx.remedies import Remedy, remedies, spelled, suspects, to_try, verdict
from ftbc_onnx.report_diagnosis import print_diagnosis
from ftbc_onnx.trials import try_changes, with_neuron

OPTIONS = {"neuron": "signed-group", "levels": 8, "threshold": "percentile", "percentile": 70.0, "verify": False}


@pytest.fixture(scope="module")
def clipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A conversion that clips everywhere."""
    return convert(RELU, CALIBRATION, steps=4, **OPTIONS).save(tmp_path_factory.mktemp("clipped") / "snn.onnx")


def rows(text: str) -> list[str]:
    """First cells of the rows of the tables, without those that go on from the row above."""
    cells = [line.split("│")[1].strip() for line in text.splitlines() if line.startswith("│")]
    return [cell for cell in cells if cell]


class TestCommand:
    def test_prints_sites_and_sentences(self, call: Caller, tmp_path: Path) -> None:  # noqa: F811
        result = convert(RELU, CALIBRATION, steps=4, **{**OPTIONS, "threshold": "mse"})
        low = {"node_relu_3": result.plan.thresholds["node_relu_3"] / 10}
        for tensor in result.model.graph.initializer:
            site = tensor.name.removesuffix("/threshold")
            if site in low:
                tensor.CopyFrom(numpy_helper.from_array(low[site], tensor.name))
        done = call("diagnose", result.save(tmp_path / "snn.onnx"), "--ann", RELU, "--data", CALIBRATION)
        assert (done.code, done.err) == (0, "")
        assert rows(done.out)[0] == "node_relu_3"
        assert len(rows(done.out)) == 4
        assert "64 samples of digits_calibration.npz, T = 4, neuron signed-group of 8 levels" in done.out
        assert "what stands out, and makes so much of an error alone: node_relu_3" in done.out
        (sentence,) = [line for line in done.out.splitlines() if line.startswith("node_relu_3: ")]
        assert "activation beyond the threshold, in 32 of 32 channels: try --threshold percentile" in sentence

    def test_tells_data_that_are_not_those_of_the_conversion_first(
        self,
        call: Caller,  # noqa: F811
        clipped: Path,
        tmp_path: Path,
    ) -> None:
        np.savez(tmp_path / "bright.npz", image=np.load(CALIBRATION)["image"] * np.float32(255))
        looked_at = ("diagnose", clipped, "--ann", RELU, "--data", tmp_path / "bright.npz")
        report = json.loads(call(*looked_at, "--json").out)
        assert [found["name"] for found in report["unlike"]] == ["image"]
        assert report["verdict"][0].startswith("input 'image' is ")
        assert "the two are not prepared alike" in report["verdict"][0]
        assert "prepared alike" not in call("diagnose", clipped, "--ann", RELU, "--data", CALIBRATION).out

    def test_with_verbose_every_step(self, call: Caller, clipped: Path) -> None:  # noqa: F811
        done = call("diagnose", clipped, "--ann", RELU, "--data", TEST, "--samples", 8, "-v")
        assert "error / own error after each step" in " ".join(done.out.split())
        assert sorted(rows(done.out)) == sorted(2 * ["node_relu", "node_relu_1", "node_relu_2", "node_relu_3"])

    def test_json_alone(self, call: Caller, clipped: Path) -> None:  # noqa: F811
        done = call("diagnose", clipped, "--ann", RELU, "--data", TEST, "--samples", 8, "--json", "-v")
        assert (done.code, done.err) == (0, "")
        report = json.loads(done.out)
        assert report["samples"] == 8
        assert len(report["sites"]) == 4
        assert report["trials"] == []
        assert {remedy["site"] for remedy in report["remedies"]} <= {site["site"] for site in report["sites"]}

    def test_tries_what_it_says(self, call: Caller, clipped: Path) -> None:  # noqa: F811
        data = ("--data", TEST, "--samples", 32, "--calib-data", CALIBRATION)
        report = json.loads(call("diagnose", clipped, "--ann", RELU, *data, "--try", "--json").out)
        first, *others = report["trials"]
        assert first["what"] == "as it was"
        assert first["samples"] == 64
        higher = next(t for t in others if t["what"] == "--threshold percentile --percentile 99.99")
        assert higher["error"] < first["error"] / 4

    def test_without_suspects_nothing_is_tried(self, call: Caller, tmp_path: Path) -> None:  # noqa: F811
        options = {**OPTIONS, "threshold": "mse"}
        snn = convert(RELU, CALIBRATION, steps=8, **options).save(tmp_path / "snn.onnx")
        done = call("diagnose", snn, "--ann", RELU, "--data", CALIBRATION, "--try", "--calib-data", CALIBRATION)
        assert "the network follows its ANN" in done.out
        assert "tried" not in done.out

    def test_mistakes(self, call: Caller, clipped: Path, tmp_path: Path) -> None:  # noqa: F811
        what = ("diagnose", clipped, "--data", TEST, "--ann")
        fails(call(*what, RELU, "--try"), 2, "--try converts again", "add --calib-data")
        fails(call(*what, QCFS), 3, "was not made from")
        fails(call("diagnose", RELU, "--data", TEST, "--ann", RELU), 3, "is no spiking network made by ftbc-onnx")
        fails(call(*what, RELU, "--samples", 0), 2, "samples is 0")
        np.savez(tmp_path / "few.npz", image=digits("test", 15)[0])
        fails(call(*what, RELU, "--try", "--calib-data", tmp_path / "few.npz"), 4, "15 samples, too few to hold some")

    def test_a_diagnosis_is_shown_whatever_becomes_of_trials(
        self,
        call: Caller,  # noqa: F811
        clipped: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """It took minutes, and they may take longer; too few samples are known before it begins."""
        looked_at = ("diagnose", clipped, "--ann", RELU, "--data", TEST, "--samples", 8)
        data = (*looked_at, "--try", "--calib-data", CALIBRATION)
        for error, code, said in ((DataError("broken"), 4, "broken"), (KeyboardInterrupt(), 130, "")):

            def stop(*_: object, error: BaseException = error, **__: object) -> None:
                raise error

            monkeypatch.setattr(sys.modules["ftbc_onnx.cli.diagnose"], "try_changes", stop)
            done = call(*data)
            assert done.code == code
            assert said in done.err
            assert "output error after each step" in done.out
            assert json.loads(call(*data, "--json").out)["trials"] == []

    def test_data_without_an_end(self, call: Caller, clipped: Path, tmp_path: Path) -> None:  # noqa: F811
        script = tmp_path / "endless.py"
        script.write_text(
            f"import numpy as np\ndef data():\n    images = np.load({str(CALIBRATION)!r})['image']\n"
            "    while True:\n        yield images\n"
        )
        data = ("--data", script, "--samples", 8, "--calib-data", script, "--try", "--json")
        report = json.loads(call("diagnose", clipped, "--ann", RELU, *data).out)
        assert report["samples"] == 8
        assert report["trials"][0]["samples"] == 64
        assert call("verify", clipped, "--ann", RELU, "--data", script).code == 0


def site(
    name: str, cost: float, share: float, channels: int = 4, stated: bool = False, **causes: float
) -> SiteDiagnosis:
    where = SpikingSite(name, "Relu", (name,), "x", "y", 4, 1, channels, threshold=(1.0,) if stated else None)
    every = {**dict.fromkeys(("weights", "silent", "clipping", "bias", "timing", "rounding"), 0.0), **causes}
    curve = np.full(4, 0.1)
    return SiteDiagnosis(where, cost, 0.0, share, 0.0, curve, curve, sum(causes.values()), every, 1, 2, ((0, 1.0),))


def of(*sites: SiteDiagnosis, error: float = 0.5, neuron: str = "if") -> Diagnosis:
    spec = NeuronSpec(neuron, 1 if neuron in ("if", "signed-st") else 8)
    plan = SpikingPlan("", (), 4, spec, {})
    return Diagnosis(plan, "data", 8, "y", np.full(4, error), 90.0, sites, 0.0)


def beside(*sites: SiteDiagnosis, **more: Any) -> Diagnosis:
    """A network of some sites and one that does nothing wrong."""
    return of(*sites, site("other", 0.0, 0.0), **more)


def test_numbers_of_sites_with_long_names_are_whole_at_80_columns() -> None:
    text = io.StringIO()
    found = of(site("/backbone/features/stage2/block.3/convolution_path/relu2", 0.215, 0.9, rounding=0.264))
    print_diagnosis(Console(file=text, width=80), found, [], verbose=True)
    lines = text.getvalue().splitlines()
    assert max(map(len, lines[3:])) <= 80
    assert any("21.5" in line and "26.4" in line and "rounding 100" in line for line in lines)
    assert any("10.0 / 10.0" in line for line in lines)


class TestSuspects:
    def test_twice_an_even_share_stands_out(self) -> None:
        found = of(site("a", 0.1, 0.1), site("b", 0.3, 0.5), site("c", 0.2, 0.4), error=0.5)
        assert [s.site.name for s in suspects(found)] == ["b"]  # 2 / (3 + 1)
        assert "b 30.0 %" in verdict(found)[0]

    def test_none_if_the_error_is_small(self) -> None:
        found = of(site("a", 0.01, 1.0, rounding=1.0), error=0.05)
        assert suspects(found) == []
        assert remedies(found, ConvertConfig(neuron="if")) == []

    def test_if_none_stands_out_the_first_is_spoken_of(self) -> None:
        sites = [site(name, 0.1, 0.25, rounding=1.0) for name in "abcd"]
        found = of(*sites)
        assert "no site stands out" in verdict(found)[0]
        assert {remedy.site for remedy in remedies(found, ConvertConfig(neuron="if"))} == {"a"}

    def test_where_every_site_alone_is_exact_the_one_that_spares_most_is_spoken_of(self) -> None:
        spared = {"a": 0.0, "b": 0.2, "c": 0.1}
        sites = [replace(site(name, 0.0, 0.0, timing=1.0), spared=value) for name, value in spared.items()]
        found = of(*sites)
        assert [s.site.name for s in found.ranked] == ["b", "c", "a"]
        assert "every site alone is exact" in verdict(found)[0]
        assert {remedy.site for remedy in remedies(found, ConvertConfig(neuron="if"))} == {"b"}
        behind = replace(found, tail=0.4)
        assert not any("every site alone is exact" in sentence for sentence in verdict(behind))

    def test_a_network_of_one_site(self) -> None:
        assert len(suspects(of(site("a", 0.5, 1.0, rounding=1.0)))) == 1


class TestSentences:
    def test_no_other_neuron_where_spikes_have_to_be_binary(self) -> None:
        found = beside(site("a", 0.5, 1.0, rounding=0.3), site("b", 0.5, 1.0, timing=0.3))
        said = {spelled(changes) for changes in to_try(remedies(found, self.options(), binary=True), 9)}
        assert said == {"-T 8", "--exclude '^a$'"}
        assert "signed-group" in remedies(found, self.options())[0].sentence

    def options(self, **changes: object) -> ConvertConfig:
        return ConvertConfig(**{"steps": 4, "neuron": "if", "threshold": "mse", **changes})

    def only(self, found: Diagnosis, options: ConvertConfig) -> Remedy:
        (remedy,) = remedies(found, options)
        return remedy

    @pytest.mark.parametrize(
        ("cause", "neuron", "options", "sentence"),
        [
            ("clipping", "if", {}, "--threshold percentile --percentile 99.99, or --calib-samples 512"),
            ("clipping", "if", {"per_channel": False}, "--per-channel, or --threshold percentile --percentile 99.99"),
            ("clipping", "if", {"threshold": "percentile", "percentile": 99.99}, "--threshold max, or --calib"),
            ("clipping", "if", {"threshold": "max"}, "try --calib-samples 512"),
            ("silent", "if", {}, "1 of 4 channels that never fire although the ANN is active there"),
            ("bias", "if", {}, "--calib-samples 512, or --shrink 2"),
            ("bias", "if", {"shrink": 1.0}, "--calib-samples 512"),
            ("timing", "if", {}, "spikes that reach it unevenly: try --neuron signed-group --levels 8, or -T 8"),
            ("timing", "signed-group", {}, "unevenly: try -T 8"),
            ("rounding", "if", {}, "is rounding to T*K = 4 levels: try --neuron signed-group --levels 8, or -T 8, or"),
            ("rounding", "signed-group", {}, "T*K = 32 levels: try --neuron signed-group --levels 15, or -T 8, or"),
            ("rounding", "if", {}, "or --exclude '^a$'"),
            ("weights", "if", {}, "convert the ANN again"),
        ],
    )
    def test_name_the_cause_and_options(self, cause: str, neuron: str, options: dict, sentence: str) -> None:
        found = beside(site("a", 0.5, 1.0, **{cause: 0.4}), neuron=neuron)
        remedy = self.only(found, self.options(**options))
        assert remedy.cause == cause
        assert remedy.sentence.startswith("100 % of what it adds")
        assert sentence in remedy.sentence

    def test_what_is_wrong_before_what_is_coarse(self) -> None:
        found = beside(site("a", 0.5, 1.0, rounding=0.6, silent=0.2, timing=0.05, clipping=0.15))
        assert [r.cause for r in remedies(found, self.options())] == ["silent", "clipping", "rounding"]

    def test_a_threshold_that_is_stated_is_not_looked_for(self) -> None:
        found = beside(site("a", 0.5, 1.0, stated=True, clipping=0.4))
        assert self.only(found, self.options()).tries == ()

    def test_every_option_is_one_of_convert(self) -> None:
        """What is said can be typed, and means what was meant."""
        every = []
        for cause in ("silent", "clipping", "bias", "timing", "rounding"):
            for changes in ({}, {"per_channel": False}, {"threshold": "percentile", "percentile": 99.99}):
                found = beside(site("/net/a.b/Relu", 0.5, 1.0, **{cause: 0.4}))
                every += self.only(found, self.options(**changes)).tries
        assert len({spelled(changes) for changes in every}) == 8
        for changes in every:
            words = shlex.split(spelled(changes))
            context = cli.commands["convert"].make_context("convert", ["model.onnx", *words])
            for name, value in changes.items():
                assert context.params[name] == value
            self.options(**changes)

    def test_the_only_site_is_not_excluded(self) -> None:
        tries = self.only(of(site("a", 0.5, 1.0, rounding=0.4)), self.options()).tries
        assert [list(changes) for changes in tries] == [["neuron", "levels"], ["steps"]]

    def test_an_excluded_name_is_that_name_only(self) -> None:
        found = beside(site("/net/a.b/Relu", 0.5, 1.0, rounding=0.4))
        pattern = self.only(found, self.options(exclude=("x",))).tries[-1]["exclude"]
        assert pattern == ("x", r"^/net/a\.b/Relu$")

    def test_each_change_is_tried_once_first_ones_first(self) -> None:
        first = ["--neuron signed-group --levels 8", "--threshold percentile --percentile 99.99"]
        found = beside(site("a", 0.5, 0.7, rounding=0.4), site("b", 0.4, 0.7, clipping=0.2, rounding=0.2), error=0.9)
        said = [spelled(changes) for changes in to_try(remedies(found, self.options()), 9)]
        assert said == [*first, "-T 8", "--calib-samples 512", "--exclude '^a$'", "--exclude '^b$'"]
        assert len(to_try(remedies(found, self.options()), 3)) == 3

    def test_signs_of_options(self) -> None:
        assert spelled({"gain": False, "binary": True, "per_channel": False}) == "--no-gain --binary --per-tensor"


class TestTrials:
    def test_no_trial_has_seen_what_judges(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        fitted, judged = [], []

        def watched(job: Job) -> Planned:
            assert job.calibration is not None
            fitted.append(next(job.calibration.batches(1000)).feeds["image"])
            return make_plan(job)

        class Watching(trials.Judge):
            def __call__(self, what: str, plan: SpikingPlan) -> trials.Trial:
                judged.append(next(self.source.batches(1000)).feeds["image"])
                return super().__call__(what, plan)

        monkeypatch.setattr(trials, "make_plan", watched)
        monkeypatch.setattr(trials, "Judge", Watching)
        images = digits("calibration", 96)[0] + np.arange(96, dtype=np.float32).reshape(-1, 1, 1, 1) * 1e-4
        options = ConvertConfig(**{**OPTIONS, "steps": 2})
        changes = [{"threshold": "max"}, {"steps": 4}, {"calib_samples": 512}]
        found = try_changes(changes, options, RELU, images)
        assert [trial.what for trial in found] == ["as it was", "--threshold max", "-T 4"]
        assert "--calib-samples 512 could not be tried: there are only 72 calibration samples" in caplog.text
        assert [len(part) for part in fitted] == [72] * 3
        assert [len(part) for part in judged] == [24] * 3
        for part in fitted:
            both = np.concatenate([part, judged[0]]).reshape(96, -1)
            assert len(np.unique(both, axis=0)) == 96

    def test_more_samples_are_tried_where_there_are_more(self, monkeypatch: pytest.MonkeyPatch) -> None:
        fitted = []

        def watched(job: Job) -> Planned:
            assert job.calibration is not None
            fitted.append(len(job.calibration))
            return make_plan(job)

        monkeypatch.setattr(trials, "make_plan", watched)
        options = ConvertConfig(**{**OPTIONS, "steps": 2, "calib_samples": 32})
        found = try_changes([{"calib_samples": 64}], options, RELU, digits("calibration", 256)[0])
        assert [trial.what for trial in found] == ["as it was", "--calib-samples 64"]
        assert fitted == [32, 48]  # of 64 samples 16 judge

    def test_it_agrees_with_a_conversion_of_its_own(self) -> None:
        """What is printed is the output error of that conversion on those samples."""
        images = digits("calibration", 64)[0]
        (first,) = try_changes([], ConvertConfig(**{**OPTIONS, "steps": 2}), RELU, images)
        back = np.floor((np.arange(16) + 0.5) * 4).astype(int)
        fit = np.delete(images, back, axis=0)
        result = convert(RELU, fit, eval_data=images[back], steps=2, **OPTIONS)
        assert first.error == pytest.approx(result.report["evaluation"]["output_gap"][-1], rel=1e-5)

    def test_what_fails_is_logged_and_the_others_go_on(self, caplog: pytest.LogCaptureFixture) -> None:
        options = ConvertConfig(**{**OPTIONS, "steps": 2, "batch_size": 128})  # more than are left to fit to
        changes = [{"exclude": ("nothing",)}, {"threshold": "max"}]
        found = try_changes(changes, options, RELU, digits("calibration", 128)[0])
        assert [trial.what for trial in found] == ["as it was", "--threshold max"]
        (record,) = caplog.records
        assert "--exclude nothing could not be tried: 'nothing' matches no activation" in record.getMessage()

    def test_too_few_samples(self) -> None:
        with pytest.raises(DataError, match="15 samples, too few to hold some back"):
            try_changes([], ConvertConfig(**OPTIONS), RELU, digits("calibration", 15)[0])

    def test_the_neuron_that_was_chosen_stays(self, clipped: Path) -> None:
        plan = diagnose_file(clipped, RELU, TEST, samples=1).plan
        options = with_neuron(ConvertConfig(budget="spikes"), plan)
        assert options.neuron_spec == NeuronSpec("signed-group", 8)
