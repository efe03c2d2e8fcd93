"""The delayed readout: in the graph, in the running means, in the NumPy run, in metadata, report and command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from helpers import OPSETS, assert_close, assert_valid, make_plan, numbers, parse, run
from networks import CALIBRATION, RELU, TEST, THRESHOLDS, inputs, network_of, plan_of, residual

from ftbc_onnx import ConfigError, ConvertConfig, ModelError, VerificationError, convert, pipeline
from ftbc_onnx.cli import cli
from ftbc_onnx.evaluate import evaluate_file
from ftbc_onnx.graph.emit.unrolled import Emitted, emit_unrolled
from ftbc_onnx.graph.observe import expose_running_means, running_mean_name
from ftbc_onnx.graph.provenance import read_plan
from ftbc_onnx.graph.sites import Network
from ftbc_onnx.plan import SpikingPlan
from ftbc_onnx.verify import simulate, verify
from ftbc_onnx.window import Window

T = 5
HEAD = "g (float[N,2,4,4] x) => "
BODIES = {
    "sums": "(float[N,K] y) { c = Conv(x, w)  r = Relu(c)  y = Flatten(r) }",
    "means": "(float[N,K] y) { c = Conv(x, w)  r = Relu(c)  f = Flatten(r)  y = Softmax<axis=1>(f) }",
    "a sum that a mean reads": "(float[N,K] y, float[N,K] z) "
    "{ c = Conv(x, w)  r = Relu(c)  y = Flatten(r)  z = Softmax<axis=1>(y) }",
    "a mean that a site reads": "(float[N,3,3,3] p, float[N,K] y) "
    "{ c = Conv(x, w)  r = Relu(c)  p = MaxPool<kernel_shape=[1,1]>(r)  q = Conv(p, v)  z = Relu(q)  y = Flatten(z) }",
    "double precision": "(double[N,K] y) { c = Conv(x, w)  r = Relu(c)  f = Flatten(r)  y = Cast<to=11>(f) }",
    "half precision": "(float16[N,K] y) { c = Conv(x, w)  r = Relu(c)  f = Flatten(r)  y = Cast<to=10>(f) }",
    "an output that no spike reaches": "(float[N,K] y, float[N,2,4,4] z) "
    "{ c = Conv(x, w)  r = Relu(c)  y = Flatten(r)  z = Sin(x) }",
}


def network(body: str, opset: int = 17) -> Network:
    weights = {"w": numbers(3, 2, 2, 2, seed=1, scale=0.5), "v": numbers(2, 3, 2, 2, seed=2)}
    return network_of(parse(HEAD + BODIES[body], opset=opset, **weights))


def plans(own: Network, start: int, steps: int = T) -> tuple[SpikingPlan, SpikingPlan]:
    """The same plan with a delayed readout, and with the mean."""
    plain = make_plan(own, steps, threshold=0.9, bias=0.2)
    return replace(plain, readout=Window(start)), plain


def curves(own: Network, plan: SpikingPlan, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs and running means, graph optimisations off."""
    emitted = emit_unrolled(own, plan)
    return run(expose_running_means(emitted.model, emitted.readouts), feeds, optimise=False)


class TestWindow:
    @pytest.mark.parametrize("start", range(5))
    def test_is_the_mean_over_its_steps(self, start: int) -> None:
        window, x = Window(start), np.arange(7) ** 2
        for t in range(7):
            used = x[start : t + 1] if t >= start else x[: t + 1]
            dropped = window.dropped(t)
            total = x[: t + 1].sum() - (0 if dropped is None else x[: dropped + 1].sum())
            assert window.count(t) == len(used)
            assert total / window.count(t) == used.mean()

    def test_text_and_back(self) -> None:
        assert (str(Window()), str(Window(4))) == ("mean", "delayed:4")
        assert [Window.parse(text) for text in ("mean", "delayed:12")] == [Window(), Window(12)]

    @pytest.mark.parametrize(
        "text", ["", "last", "delayed", "delayed:", "delayed:0", "delayed:-1", "delayed:x", "mean:2"]
    )
    def test_other_text_is_refused(self, text: str) -> None:
        with pytest.raises(ConfigError, match=r"it must be mean, or delayed:N"):
            Window.parse(text)

    @pytest.mark.parametrize("start", [-1, 1.5, True, None])
    def test_other_starts_are_refused(self, start: Any) -> None:
        with pytest.raises(ConfigError, match="the readout starts at step"):
            Window(start)


class TestEmission:
    @pytest.mark.parametrize("start", [1, 2, T - 1])
    @pytest.mark.parametrize("body", BODIES)
    def test_is_the_mean_of_the_currents_from_t0_on(self, body: str, start: int) -> None:
        """Currents from the running means of the plain readout; before t0 the plain mean, to the last bit."""
        own, feeds = network(body), {"x": numbers(4, 2, 4, 4, seed=3)}
        delayed, plain = (curves(own, plan, feeds) for plan in plans(own, start))
        for name in own.view.output_names:
            if name not in own.temporal:
                np.testing.assert_array_equal(delayed[name], plain[name])
                continue
            rows, means = delayed[running_mean_name(name)], plain[running_mean_name(name)].astype(np.float64)
            totals = means * np.arange(1, T + 1).reshape(-1, *[1] * (means.ndim - 1))
            currents = np.diff(totals, axis=0, prepend=np.zeros_like(totals[:1]))
            np.testing.assert_array_equal(rows[:start], plain[running_mean_name(name)][:start])
            for t in range(start, T):
                assert_close(rows[t], currents[start : t + 1].mean(0).astype(rows.dtype), steps=64)
            np.testing.assert_array_equal(delayed[name], rows[-1])
            assert not np.allclose(rows[-1], means[-1], atol=1e-3)

    @pytest.mark.parametrize("start", [1, 3, T - 1, T, T + 3])
    @pytest.mark.parametrize("body", BODIES)
    def test_is_its_plan_bitwise(self, body: str, start: int) -> None:
        own, feeds = network(body), {"x": numbers(4, 2, 4, 4, seed=4)}
        plan, _ = plans(own, start)
        found = curves(own, plan, feeds)
        for name, rows in simulate(own, plan, feeds).items():
            assert rows.dtype == found[name].dtype
            np.testing.assert_array_equal(found[running_mean_name(name)], rows)
        emitted = emit_unrolled(own, plan)
        assert verify(emitted, own, plan, feeds).bitwise

    @pytest.mark.parametrize("body", BODIES)
    def test_a_prefix_is_the_running_output_bit_for_bit(self, body: str) -> None:
        """Shorter and longer than t0."""
        own, feeds = network(body), {"x": numbers(3, 2, 4, 4, seed=5)}
        plan, _ = plans(own, 2)
        long = curves(own, plan, feeds)
        for steps in range(1, T + 1):
            short = run(emit_unrolled(own, plan.prefix(steps)).model, feeds, optimise=False)
            for name in own.temporal & set(own.view.output_names):
                np.testing.assert_array_equal(short[name], long[running_mean_name(name)][steps - 1])

    @pytest.mark.parametrize("opset", OPSETS)
    def test_models_are_valid(self, opset: int) -> None:
        own = network("means", opset)
        emitted = emit_unrolled(own, plans(own, 2)[0])
        assert_valid(emitted.model)
        assert_valid(expose_running_means(emitted.model, emitted.readouts))

    def test_numbers_that_are_exact(self) -> None:
        """Of `residual` over the last two of four steps: twice the longer mean less the shorter, without rounding."""
        own, feeds = network_of(residual()), {"x": inputs(4)}
        plain = plan_of(own, THRESHOLDS, 4)
        two, four = (run(emit_unrolled(own, plain.prefix(steps)).model, feeds, optimise=False)["y"] for steps in (2, 4))
        found = run(emit_unrolled(own, replace(plain, readout=Window(2))).model, feeds, optimise=False)["y"]
        np.testing.assert_array_equal(found, 2 * four - two)
        assert np.any(found != four)

    def test_the_mean_adds_no_node(self) -> None:
        own = network("sums")
        delayed, plain = (len(emit_unrolled(own, plan).model.graph.node) for plan in plans(own, 2))
        assert delayed == plain + 1  # the difference of two sums


class TestVerification:
    def test_another_window_than_the_plans(self) -> None:
        own, feeds = network("sums"), {"x": numbers(3, 2, 4, 4)}
        delayed, plain = plans(own, 2)
        for emitted_plan, stated in ((delayed, plain), (plain, delayed), (plans(own, 3)[0], delayed)):
            emitted = emit_unrolled(own, emitted_plan)
            with pytest.raises(VerificationError, match="differs from its plan"):
                verify(emitted, own, stated, feeds)

    @pytest.mark.parametrize("start", [0, 2])
    def test_an_output_that_is_not_the_last_running_mean(self, start: int) -> None:
        """The running means are right, the output itself is another tensor."""
        own, feeds = network("sums"), {"x": numbers(3, 2, 4, 4)}
        plan = plans(own, start)[0]
        emitted = emit_unrolled(own, plan)
        model = onnx.ModelProto()
        model.CopyFrom(emitted.model)
        (alias,) = (node for node in model.graph.node if list(node.output) == ["y"])
        alias.input[0] = emitted.readouts[0].tensors[-1]  # the sum
        changed = Emitted(model, emitted.readouts)
        with pytest.raises(VerificationError, match="differs from its plan"):
            verify(changed, own, plan, feeds)


class TestRefusals:
    CLASS = "g (float[N,4] x) => (float[N,4] y, int64[N,1] z) { y = Relu(x)  z = ArgMax<axis=1>(y) }"

    def test_a_mean_of_class_numbers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        own = network_of(parse(self.CLASS))
        plan = make_plan(own, 3)
        assert emit_unrolled(own, plan).readouts
        message = r"^output 'z' is int64, of which there is no mean over the last steps: use --readout mean"
        with pytest.raises(ModelError, match=message):
            emit_unrolled(own, replace(plan, readout=Window(1)))
        monkeypatch.setattr(pipeline, "_run_ann", lambda *_: pytest.fail("work was begun"))
        with pytest.raises(ModelError, match=message):
            convert(parse(self.CLASS), numbers(8, 4), steps=3, readout="delayed", readout_from=1)

    def test_a_class_number_that_no_spike_reaches_does_not_matter(self) -> None:
        text = "g (float[N,4] x) => (float[N,4] y, int64[N,1] z) { y = Relu(x)  z = ArgMax<axis=1>(x) }"
        own = network_of(parse(text))
        emit_unrolled(own, replace(make_plan(own, 3), readout=Window(1)))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"readout": "delay"}, r"readout is 'delay' (did you mean 'delayed'?): choose one of mean, delayed"),
            ({"readout": "mean", "readout_from": 2}, "readout_from goes with readout 'delayed', not with 'mean'"),
            ({"readout": "delayed"}, "readout_from is None: readout 'delayed' takes a whole number from 1 to T-1 = 3"),
            ({"readout": "delayed", "readout_from": 0}, "readout_from is 0"),
            ({"readout": "delayed", "readout_from": 4}, "readout_from is 4"),
            ({"readout": "delayed", "readout_from": True}, "readout_from is True"),
            ({"readout": "delayed", "readout_from": 1.0}, "readout_from is 1.0"),
            (
                {"readout": "delayed", "readout_from": 1, "neuron": "if", "schedule": "synchronous"},
                "readout 'delayed' goes with schedule asynchronous",
            ),
        ],
    )
    def test_options(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError) as caught:
            ConvertConfig.from_options({"steps": 4, **options})
        assert str(caught.value).startswith(message)

    def test_an_option_that_says_another_is_enough(self) -> None:
        assert ConvertConfig.from_options({"steps": 4, "readout_from": 2}).readout == "delayed"
        assert ConvertConfig.from_options({"steps": 4, "readout": None}).readout == "mean"
        assert ConvertConfig.from_options({"percentile": 99}).threshold == "percentile"
        assert ConvertConfig.from_options({"percentile": 99, "threshold": "mse"}).threshold == "mse"

    def test_a_synchronous_plan(self) -> None:
        plan = make_plan(network("sums"), 4)
        with pytest.raises(ConfigError, match="readout delayed goes with schedule asynchronous"):
            replace(plan, readout=Window(1), schedule="synchronous")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A file made at the command line, with its report."""
    path = tmp_path_factory.mktemp("delayed") / "snn.onnx"
    arguments = ["convert", RELU, "-T", 4, "--neuron", "if", "--threshold", "mse", "--calib-data", CALIBRATION]
    arguments += [
        "--calib-samples",
        64,
        "--eval-data",
        TEST,
        "--readout-from",
        2,
        "--running-mean",
        "-o",
        path,
        "--json",
    ]
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0
    return path, json.loads(done.stdout)


class TestEndToEnd:
    def test_the_file_and_its_report_say_it(self, saved: tuple[Path, dict[str, Any]]) -> None:
        path, report = saved
        assert report["readout"] == report["evaluation"]["readout"] == "delayed:2"
        assert (report["options"]["readout"], report["options"]["readout_from"]) == ("delayed", 2)
        assert report["verification"]["bitwise"]
        plan = read_plan(onnx.load(path))
        assert plan.readout == Window(2)
        assert plan.describe()["readout"] == "delayed:2"
        assert plan != replace(plan, readout=Window())

    def test_the_curve_is_that_of_the_file(self, saved: tuple[Path, dict[str, Any]]) -> None:
        path, report = saved
        with np.load(TEST) as data:
            images, labels = data["image"], data["label"]
        found = run(onnx.load(path), {"image": images})
        rows = found["logits/running_mean"]
        np.testing.assert_array_equal(rows[-1], found["logits"])
        expected = [100 * np.mean(row.argmax(1) == labels) for row in rows]
        np.testing.assert_allclose(report["evaluation"]["accuracy"], expected, atol=0.3)  # one image may flip
        plain = convert(
            RELU, CALIBRATION, eval_data=TEST, steps=4, neuron="if", threshold="mse", calib_samples=64, gate=False
        )
        without = run(plain.model, {"image": images})["logits"]
        assert np.abs(without - found["logits"]).max() > 0.1

    def test_evaluating_the_file_gives_the_same(self, saved: tuple[Path, dict[str, Any]]) -> None:
        path, report = saved
        again, _ = evaluate_file(path, TEST, device="cpu")
        assert again.readout == "delayed:2"
        np.testing.assert_allclose(again.accuracy, report["evaluation"]["accuracy"], atol=0.3)

    def test_without_running_means_in_the_file_too(self, tmp_path: Path) -> None:
        """They are added for the evaluation, under the readout that the file remembers."""
        result = convert(
            RELU, CALIBRATION, eval_data=TEST, steps=4, neuron="if", threshold="mse", readout="delayed", readout_from=3
        )
        again, _ = evaluate_file(result.save(tmp_path / "snn.onnx"), TEST, ann=RELU, device="cpu")
        assert again.accuracy == result.evaluation.accuracy
        assert again.output_gap == result.evaluation.output_gap
        assert again.output_gap[3] > again.output_gap[2]  # a single step again

    def test_the_terminal_says_what_the_rows_are(self, saved: tuple[Path, dict[str, Any]]) -> None:
        done = CliRunner().invoke(cli, ["evaluate", str(saved[0]), "--eval-data", str(TEST), "--samples", "20"])
        assert "readout: mean over the steps after the first 2; rows up to T = 2 are plain means" in done.stdout

    def test_the_plain_mean_is_not_talked_about(self, tmp_path: Path) -> None:
        path = convert(residual(), inputs(16), steps=2, neuron="if").save(tmp_path / "snn.onnx")
        np.savez(tmp_path / "data.npz", x=inputs(8))
        done = CliRunner().invoke(cli, ["evaluate", str(path), "--eval-data", str(tmp_path / "data.npz")])
        assert done.exit_code == 0
        assert "readout" not in done.stdout
        assert read_plan(onnx.load(path)).describe()["readout"] == "mean"

    def test_readout_mean_with_a_start_is_refused(self) -> None:
        done = CliRunner().invoke(
            cli, ["convert", str(RELU), "--random-data", "--readout", "mean", "--readout-from", "2"]
        )
        assert isinstance(done.exception, ConfigError)
