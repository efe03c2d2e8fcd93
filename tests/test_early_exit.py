"""Early exit: the margin by hand, the steps by a loop, and what the evaluation makes of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from helpers import make_plan, numbers, parse, run
from networks import CALIBRATION, QCFS, RELU, TEST, batches_of, digits, inputs, network_of, residual

from ftbc_onnx import ConfigError, ConvertConfig, convert, pipeline
from ftbc_onnx.cli import cli
from ftbc_onnx.data import DataSource, open_data
from ftbc_onnx.early_exit import decisions, relative_margin, steps_used
from ftbc_onnx.evaluate import evaluate, evaluate_file
from ftbc_onnx.graph.emit.unrolled import emit_unrolled
from ftbc_onnx.graph.files import input_specs
from ftbc_onnx.graph.observe import expose_running_means
from ftbc_onnx.results import EvaluationResult
from ftbc_onnx.runtime import CPU
from ftbc_onnx.window import Window

T = 5


class TestMargin:
    @pytest.mark.parametrize(
        ("scores", "margin"),
        [
            ([3, 1, 2], 0.5),  # (3 - 2) / 2
            ([-1, 5, -3, 3], 2 / 3),  # (5 - 3) / 3: sizes count, not signs
            ([-4, -1, -1], 0),  # a tie
            ([-4, -2], 2 / 3),
            ([0.75, 0.25], 1),  # of probabilities it is classes * (p1 - p2)
            ([0, 0, 0], 0),
        ],
    )
    def test_by_hand(self, scores: list[float], margin: float) -> None:
        assert relative_margin(np.array(scores, np.float32)) == pytest.approx(margin)

    def test_a_factor_does_not_matter_and_every_row_has_its_own(self) -> None:
        scores = numbers(4, 6, 7)
        margins = relative_margin(scores)
        assert margins.shape == (4, 6)
        factors = np.array([0.001, 1, 100, 1e30], np.float32).reshape(4, 1, 1)
        np.testing.assert_allclose(relative_margin(scores * factors), margins, rtol=1e-5)
        assert relative_margin(scores[2, 3]) == margins[2, 3]

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_what_is_not_finite_is_never_clear(self, value: float) -> None:
        assert relative_margin(np.array([1, value, 2, 3], np.float32)) == 0


class TestSteps:
    @pytest.mark.parametrize("margin", [0, 1, 2, 5, 1e9])
    def test_against_a_loop(self, margin: float) -> None:
        curve = numbers(T, 40, 4, seed=1)
        used = steps_used(curve, margin, Window())
        for sample in range(40):
            stops = T
            for t in range(T):
                o = sorted(curve[t, sample].astype(np.float64))
                if (t + 1) * (o[-1] - o[-2]) / np.mean(np.abs(o)) > margin:
                    stops = t + 1
                    break
            assert used[sample] == stops
            assert decisions(curve, used)[sample] == curve[stops - 1, sample].argmax()
        if 0 < margin < 1e9:
            assert len(set(used)) > 2

    def test_a_margin_has_to_be_exceeded(self) -> None:
        curve = np.array([[[3, 1, 2]], [[4, 0, 2]], [[4, 0, 2]]], np.float32)  # leads 0.5, 2 * 1 and 3 * 1
        margins = (0.49, 0.5, 1.99, 2, 3)
        assert [int(steps_used(curve, m, Window())[0]) for m in margins] == [1, 2, 2, 3, 3]

    def test_a_delayed_mean_is_over_fewer_steps(self) -> None:
        """With t0 = 2: means over 1, 2, 1 and 2 steps of the same scores, whose margin is 0.5."""
        curve = np.array([[[3, 1, 2]]] * 4, np.float32)
        assert [int(steps_used(curve, m, Window(2))[0]) for m in (0.4, 0.9, 1.1)] == [1, 2, 4]
        curve[1] = 0
        assert [int(steps_used(curve, m, Window(2))[0]) for m in (0.4, 0.9, 1.1)] == [1, 4, 4]
        assert int(steps_used(curve, 0.9, Window())[0]) == 3

    def test_nothing_to_tell_apart_goes_on(self) -> None:
        curve = np.zeros((3, 2, 4), np.float32)
        curve[1, 0, 2] = 1
        used = steps_used(curve, 0, Window())
        assert used.tolist() == [2, 3]
        assert decisions(curve, used).tolist() == [2, 0]


def labelled(count: int, with_labels: bool = True) -> DataSource:
    images, labels = digits("test", count)
    return open_data((images, labels) if with_labels else images, input_specs(onnx.load(RELU)))


def judge(margin: float | None, size: int = 16, source: DataSource | None = None, **options: Any) -> EvaluationResult:
    network = network_of(onnx.load(RELU))
    plan = make_plan(network, T, threshold=1.1, bias=0.1)
    emitted, data = emit_unrolled(network, plan), source or labelled(50)
    return evaluate(
        emitted.model, emitted.readouts, plan, data, batches_of(size), device=CPU, early_exit=margin, **options
    )


class TestEvaluation:
    def test_is_what_the_running_means_say(self) -> None:
        """In batches of 16, 16, 16 and 2, against one run over everything and a loop over samples."""
        network = network_of(onnx.load(RELU))
        emitted = emit_unrolled(network, make_plan(network, T, threshold=1.1, bias=0.1))
        images, labels = digits("test", 50)
        rows = run(expose_running_means(emitted.model, emitted.readouts), {"image": images})["logits/running_mean"]
        margins = relative_margin(rows) * np.arange(1, T + 1)[:, None]
        margin = float(np.median(margins[2]))
        used = [next((t for t in range(T) if margins[t, i] > margin), T - 1) for i in range(50)]
        right = [rows[t, i].argmax() == labels[i] for i, t in enumerate(used)]
        found = judge(margin).early_exit
        assert found.margin == margin
        assert found.mean_steps == pytest.approx(np.mean(used) + 1)
        assert found.accuracy == pytest.approx(100 * np.mean(right))
        assert 1 < found.mean_steps < T

    def test_the_ends_are_the_first_and_the_last_step(self) -> None:
        result = judge(1e9)
        assert (result.early_exit.mean_steps, result.early_exit.accuracy) == (T, pytest.approx(result.accuracy[-1]))
        result = judge(0)
        assert (result.early_exit.mean_steps, result.early_exit.accuracy) == (1, pytest.approx(result.accuracy[0]))

    def test_a_larger_margin_takes_more_steps(self) -> None:
        steps = [judge(margin).early_exit.mean_steps for margin in (0, 0.5, 1, 2, 4)]
        assert steps == sorted(steps)
        assert len(set(steps)) > 3

    def test_follows_a_delayed_readout(self) -> None:
        """From t0 = 2 on the mean is over fewer steps, which makes the lead smaller."""
        network = network_of(onnx.load(RELU))
        plan = replace(make_plan(network, T, threshold=1.1, bias=0.1), readout=Window(2))
        emitted, images = emit_unrolled(network, plan), digits("test", 50)[0]
        rows = run(expose_running_means(emitted.model, emitted.readouts), {"image": images})["logits/running_mean"]
        leads = relative_margin(rows) * np.array([1, 2, 1, 2, 3])[:, None]
        margin = float(np.median(leads[3]))
        used = [next((t for t in range(T) if leads[t, i] > margin), T - 1) for i in range(50)]
        found = evaluate(
            emitted.model, emitted.readouts, plan, labelled(50), batches_of(16), device=CPU, early_exit=margin
        )
        assert found.early_exit.mean_steps == pytest.approx(np.mean(used) + 1)
        assert steps_used(rows, margin, Window()).mean() != found.early_exit.mean_steps

    def test_nothing_else_changes(self) -> None:
        plain, early = judge(None), judge(1.0)
        assert plain.early_exit is None
        assert plain.as_dict()["early_exit"] is None
        assert plain.accuracy == early.accuracy
        assert early.as_dict()["early_exit"] == {
            "margin": 1.0,
            "accuracy": early.early_exit.accuracy,
            "mean_steps": early.early_exit.mean_steps,
        }

    def test_label_offset(self) -> None:
        images, labels = digits("test", 50)
        shifted = open_data((images, labels + 3), input_specs(onnx.load(RELU)))
        assert judge(1.0, source=shifted, label_offset=-3).early_exit == judge(1.0).early_exit

    def test_without_labels_there_are_steps_only(self) -> None:
        found = judge(1.0, source=labelled(50, with_labels=False)).early_exit
        assert found.accuracy is None
        assert found.mean_steps == judge(1.0).early_exit.mean_steps

    def test_filling_of_a_fixed_batch_does_not_count(self) -> None:
        """10 samples in batches of exactly 4."""
        results = []
        for size in (None, 4):
            model = residual()
            for value in (model.graph.input[0], model.graph.output[0]):
                if size:
                    value.type.tensor_type.shape.dim[0].dim_value = size
            network = network_of(model)
            emitted = emit_unrolled(network, make_plan(network, T, threshold=2.0))
            source = open_data((inputs(10), np.arange(10) % 3), input_specs(model))
            batching = batches_of(size or 10, fixed=size is not None)
            plan = make_plan(network, T, threshold=2.0)
            results.append(
                evaluate(emitted.model, emitted.readouts, plan, source, batching, device=CPU, early_exit=0.7).early_exit
            )
        free, fixed = results
        assert fixed.mean_steps == pytest.approx(free.mean_steps)
        assert fixed.accuracy == pytest.approx(free.accuracy)
        assert 1 < free.mean_steps < T


class TestRefusals:
    NO_SCORES = "g (float[N,2,3,3] x) => (float[N,2,3,3] y) { y = Relu(x) }"

    def test_an_output_that_is_no_row_of_scores_before_any_work(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pipeline, "make_plan", lambda *_: pytest.fail("work was begun"))
        with pytest.raises(ConfigError, match=r"output 'y' of shape \(8, 2, 3, 3\) has none, leave out --early-exit"):
            convert(parse(self.NO_SCORES), numbers(8, 2, 3, 3), steps=2, early_exit=1.0)

    def test_in_a_file_too(self, tmp_path: Path) -> None:
        path = convert(parse(self.NO_SCORES), numbers(8, 2, 3, 3), steps=2).save(tmp_path / "snn.onnx")
        with pytest.raises(ConfigError, match="an early exit compares the scores of classes"):
            evaluate_file(path, numbers(4, 2, 3, 3), early_exit=1.0)

    def test_without_data(self) -> None:
        with pytest.raises(ConfigError, match="early_exit is looked at in the evaluation, for which there are no data"):
            convert(QCFS, steps=2, early_exit=1.0)

    @pytest.mark.parametrize("margin", [-0.1, float("nan"), float("inf"), "1", True])
    def test_what_is_no_margin(self, margin: Any) -> None:
        with pytest.raises(ConfigError, match=f"early_exit is {margin}: it must be a margin"):
            ConvertConfig(early_exit=margin)
        with pytest.raises(ConfigError, match=f"early_exit is {margin}: it must be a margin"):
            evaluate_file(RELU, TEST, early_exit=margin)

    def test_synchronous_networks(self, tmp_path: Path) -> None:
        message = "early_exit goes with schedule asynchronous"
        with pytest.raises(ConfigError, match=message):
            ConvertConfig(early_exit=1.0, neuron="if", schedule="synchronous")
        path = convert(QCFS, steps=2, neuron="if", schedule="synchronous").save(tmp_path / "snn.onnx")
        with pytest.raises(ConfigError, match=message):
            evaluate_file(path, TEST, early_exit=1.0)


class TestCommandLine:
    LINE = r"early exit at margin 1.5: accuracy {accuracy:.2f} %, {mean_steps:.2f} steps on average"

    def test_convert_and_evaluate_say_the_same(self, tmp_path: Path) -> None:
        snn = tmp_path / "snn.onnx"
        shared = ["--eval-data", str(TEST), "--early-exit", "1.5", "--device", "cpu"]
        made = ["convert", str(RELU), "-T", "4", "--neuron", "if", "--threshold", "mse", "-o", str(snn)]
        made += ["--calib-data", str(CALIBRATION), "--calib-samples", "64", *shared]
        told, judged = (CliRunner().invoke(cli, arguments) for arguments in (made, ["evaluate", str(snn), *shared]))
        record = CliRunner().invoke(cli, ["evaluate", str(snn), *shared, "--json"])
        early = json.loads(record.stdout)["early_exit"]
        assert early["margin"] == 1.5
        assert 1 < early["mean_steps"] < 4
        line = self.LINE.format(**early)
        assert line in told.stdout
        assert line in judged.stdout

    def test_on_calibration_data_there_is_no_accuracy(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "data.npz", x=inputs(16), labels=np.arange(16) % 3)
        onnx.save(residual(), tmp_path / "net.onnx")
        arguments = ["convert", str(tmp_path / "net.onnx"), "-T", "2", "--neuron", "if", "--calib-data"]
        done = CliRunner().invoke(cli, [*arguments, str(tmp_path / "data.npz"), "--early-exit", "1e9"])
        assert "early exit at margin 1e+09: 2.00 steps on average" in done.stdout

    def test_is_not_talked_about_unless_asked_for(self, tmp_path: Path) -> None:
        path = convert(residual(), inputs(16), steps=2, neuron="if").save(tmp_path / "snn.onnx")
        np.savez(tmp_path / "data.npz", x=inputs(8))
        done = CliRunner().invoke(cli, ["evaluate", str(path), "--eval-data", str(tmp_path / "data.npz")])
        assert done.exit_code == 0
        assert "early exit" not in done.stdout

    def test_a_delayed_curve_is_what_samples_stop_on(self) -> None:
        """With t0 = 2 of 3 steps and a margin that nobody reaches, the decision is that of the last step alone."""
        result = convert(
            RELU, CALIBRATION, eval_data=TEST, steps=3, neuron="if", calib_samples=64, early_exit=1e9,
            readout="delayed", readout_from=2,
        )  # fmt: skip
        assert result.evaluation.early_exit.accuracy == pytest.approx(result.evaluation.accuracy[-1])
        assert result.evaluation.readout == "delayed:2"
