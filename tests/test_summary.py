"""What a report comes to: every sentence is there when its number calls for it, and only then."""

from __future__ import annotations

from typing import Any

import pytest

from ftbc_onnx.summary import summarise


def measured(accuracy: list[float] | None = None, **more: Any) -> dict[str, Any]:
    """An evaluation of three sites whose gaps are 0.1, 3 and 5 % of theta."""
    gaps = ([0.1, 0.001], [0.2, 0.03], [0, 0.05])
    return {
        "samples": 1000,
        "ann_accuracy": None if accuracy is None else 90.0,
        "accuracy": accuracy,
        "agreement": None,
        "output_gap": None,
        "sites": at_sites(*gaps),
        "unlike": [],
        **more,
    }


def at_sites(*gaps: list[float]) -> dict[str, Any]:
    """What is measured at the sites a, b and c."""
    return {name: {"gap_in_theta": gap} for name, gap in zip("abc", gaps, strict=True)}


def sites_with(*clipped: float | None) -> list[dict[str, Any]]:
    """Sites a, b and c with what is clipped of their activations; None: not known."""
    known = [None if share is None else {"clipped": share} for share in clipped]
    return [{"name": name, "activation": kept} for name, kept in zip("abc", known, strict=True)]


def report(evaluation: dict[str, Any] | None, plain: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """As much of a report as a summary looks at."""
    curves = () if evaluation is None else (evaluation[key] for key in ("accuracy", "agreement", "output_gap"))
    return {
        "steps": max((len(curve or ()) for curve in curves), default=0),
        "evaluation": evaluation,
        "evaluation_without_bias": plain,
        "calibration": {},
        "samples": 256,
        "random_data": False,
        "evaluated_on": "evaluation data",
        "synchronous": None,
        "neuron": "if",
        "options": {"refit": False, "binary": False, "threshold": "auto"},
        "layers": [],
        "fittable_layers": 3,
        "sites": sites_with(0.01, 0.01, 0.01),
        **more,
    }


def test_verdict_gives_accuracies() -> None:
    first, *_ = summarise(report(measured([50.0, 82.0]), measured([20.0, 61.5])))
    assert first == (
        "After T = 2 steps the SNN is right on 82.0 % of 1000 samples, the ANN on 90.0 %; "
        "without temporal biases it would be 61.5 %."
    )


def test_verdict_compares_fitted_layers_with_plain_conversion() -> None:
    first, *_ = summarise(report(measured([82.0]), measured([61.5]), layers=["conv2"]))
    assert first.endswith("; plainly converted it would be 61.5 %.")


def test_verdict_where_no_biases_were_kept() -> None:
    first, *_ = summarise(report(measured([50.0, 82.0]), measured([50.0, 82.0])))
    assert "no temporal biases were kept, as they did not hold" in first
    assert "would be" not in first
    assert "biases" not in summarise(report(measured([50.0]), measured([50.0]), calibration=None))[0]


def test_verdict_where_nothing_was_compared() -> None:
    first, *_ = summarise({**report(measured([82.0])), "evaluation_without_bias": None})
    assert "82.0 %" in first
    assert "biases" not in first


@pytest.mark.parametrize(("accuracy", "said"), [(89.5, True), (88.0, False), (90.0, False)])
def test_verdict_says_what_so_many_samples_cannot_tell(accuracy: float, said: bool) -> None:
    """One standard error at 90 % of 1000 samples is 0.95 points."""
    first, *_ = summarise(report(measured([accuracy])))
    assert ("standard error of 1000 samples, 0.9)" in first) is said


def test_verdict_without_labels() -> None:
    first, *_ = summarise(report(measured(agreement=[70.0, 97.5])))
    assert "decides as the ANN does on 97.5 % of 1000 samples" in first


def test_verdict_without_classes() -> None:
    first, *rest = summarise(report(measured(output_gap=[0.5, 0.05])))
    assert "off by 5.0 % of the ANN's mean absolute output" in first
    assert rest == []


def test_nothing_evaluated() -> None:
    (only,) = summarise(report(None))
    assert "add --eval-data" in only


@pytest.mark.parametrize(
    ("curve", "first"),
    [([89.5, 89.2, 90.0, 90.0], 1), ([60.0, 89.5, 80.0, 89.5, 90.0], 4), ([50.0, 60.0, 70.0, 90.0], None)],
)
def test_close_says_from_which_step_on(curve: list[float], first: int | None) -> None:
    said = summarise(report(measured(curve)))[1:]
    expected = f"From T = {first} on the accuracy stays within 1 point of the ANN's: fewer steps may do"
    assert said == ([] if first is None else [f"{expected}, converted for them (-T)."])


def test_few_samples_make_the_margin_one_sample() -> None:
    (_, said) = summarise(report(measured([88.0, 90.0, 90.0], samples=50)))
    assert said.startswith("From T = 1 on the accuracy stays within 2 points of")


def test_so_few_samples_that_one_is_ten_points_say_nothing_of_fewer_steps() -> None:
    assert summarise(report(measured([80.0, 90.0, 90.0], samples=5)))[1:] == []


def test_few_calibration_samples_are_said() -> None:
    said = summarise(report(measured([30.0]), samples=4))
    assert said[1].startswith("It was calibrated on 4 samples, which are not enough to rely on: give 32 or more")
    assert not any("calibrated on" in sentence for sentence in summarise(report(measured([30.0]), samples=32)))


def test_data_that_are_not_prepared_alike() -> None:
    """Nothing else is said then, but what is good."""
    before, now = {"mean": -0.12, "std": 0.52, "samples": 32}, {"mean": 112.25, "std": 66.3, "samples": 32}
    unlike = {"unlike": [{"name": "x", "before": before, "now": now}]}
    _, *rest = summarise(report(measured([30.0], **unlike)))
    (said,) = rest
    assert "'x' is 112 on average on these data, with a standard deviation of 66.3, and was -0.12 with 0.52" in said
    assert "the two are not prepared alike" in said
    close = summarise(report(measured([90.0, 90.0], **unlike)))
    assert close[1] == said
    assert close[-1].startswith("From T = 1 on the accuracy stays within 1 point")


@pytest.mark.parametrize(
    ("neuron", "said"),
    [
        ("if, differential coding", True),
        ("group of 4 levels, differential coding", True),
        ("signed-group of 4 levels, differential coding", False),
        ("if", False),
    ],
)
def test_neurons_that_cannot_say_that_a_rate_falls(neuron: str, said: bool) -> None:
    text = " ".join(summarise(report(measured([30.0]), neuron=neuron)))
    assert ("Differential coding takes neurons that send both signs" in text) is said


def test_far_names_the_site_where_the_gap_grows() -> None:
    said = " ".join(summarise(report(measured([30.0, 40.0]))))
    assert "largest at site 3 of 3, 'c': 5 % of theta; it first exceeds half of that at site 2, 'b'" in said
    assert "ftbc-onnx diagnose" in said


def test_far_with_fitted_layers_does_not_send_to_diagnose() -> None:
    said = " ".join(summarise(report(measured([30.0, 40.0]), layers=["conv2"])))
    assert "at site 2, 'b'." in said
    assert "ftbc-onnx diagnose" not in said


def test_far_with_the_largest_gap_first() -> None:
    sites = at_sites([0.05], [0.01], [0.02])
    said = " ".join(summarise(report(measured([30.0], sites=sites))))
    assert "largest at site 1 of 3, 'a': 5 % of theta. ftbc-onnx" in said


def test_far_although_every_mean_is_right() -> None:
    sites = at_sites([0.001], [0.0026], [0.002])
    said = summarise(report(measured([30.0], sites=sites)))
    assert said[1].startswith("No site stands out: mean gaps at T are at most 0.26 % of theta.")
    assert not any("diagnose" in sentence for sentence in said)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, True),
        ({"neuron": "signed-st, differential coding"}, True),
        ({"neuron": "signed-group of 4 levels"}, False),
        ({"options": {"refit": True, "binary": False}}, False),
        ({"fittable_layers": 0}, False),
    ],
)
def test_far_with_one_level_says_that_layers_can_be_fitted(more: dict[str, Any], said: bool) -> None:
    sites = at_sites([0.001], [0.001], [0.001])
    assert ("--refit" in summarise(report(measured([30.0], sites=sites), **more))[1]) == said


@pytest.mark.parametrize(
    ("errors", "said"),
    [
        ([0.9, 0.8, 0.7, 0.6], "still falls with T (80 % at T = 2, 60 % at T = 4): a larger -T helps"),
        ([0.9, 0.3, 0.3, 0.29], "hardly falls with T any more (30 % at T = 2, 29 % at T = 4)"),
        ([0.9, 0.9, 0.9, 0.88], None),
        (None, None),
    ],
)
def test_far_says_whether_steps_help(errors: list[float] | None, said: str | None) -> None:
    text = " ".join(summarise(report(measured([10.0, 20.0, 30.0, 40.0], output_gap=errors))))
    assert ("The output's error" in text) is (said is not None)
    assert (said or "") in text


def test_far_and_clipped() -> None:
    sites = sites_with(None, 0.2, 0.1)
    assert "Site 'b' loses 20 % of its activation above theta" in summarise(report(measured([30.0]), sites=sites))[-1]


@pytest.mark.parametrize(
    ("threshold", "said"),
    [
        ("auto", "try --threshold percentile or max"),
        ("percentile", "try a higher --percentile, or --threshold max"),
        ("max", "try more calibration samples (--calib-samples)"),
    ],
)
def test_far_and_clipped_says_what_was_not_tried(threshold: str, said: str) -> None:
    options = {"refit": False, "binary": False, "threshold": threshold}
    sites = sites_with(0.2, 0.2, 0.2)
    assert said in summarise(report(measured([30.0]), sites=sites, options=options))[-1]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, "with more levels (--neuron signed-group --levels K), --refit or a larger -T."),
        ({"options": {"refit": True, "binary": True}}, "with a larger -T."),
        ({"options": {"refit": False, "binary": True}}, "with --refit or a larger -T."),
        ({"synchronous": {}}, "with more levels (--neuron group --levels K) or a larger -T."),
    ],
)
def test_far_names_what_was_not_ruled_out(more: dict[str, Any], said: str) -> None:
    sites = at_sites([0.001], [0.001], [0.001])
    assert summarise(report(measured([30.0], sites=sites), **more))[1].endswith(said)


def test_far_and_synchronous_does_not_send_to_diagnose() -> None:
    said = " ".join(summarise(report(measured([30.0, 40.0]), synchronous={})))
    assert "at site 2, 'b'." in said
    assert "ftbc-onnx diagnose" not in said


def test_far_without_biases() -> None:
    assert "No temporal biases were calibrated" in summarise(report(measured([30.0]), calibration=None))[-1]


def test_the_ann_is_doubted_first() -> None:
    said = summarise(report(measured([9.0, 9.5], ann_accuracy=10.0)))
    assert said[1].startswith("The ANN itself has only 10.0 %")
    assert not any(s.startswith("The ANN itself") for s in summarise(report(measured([9.0, 9.5]))))


def test_data_that_are_no_judge() -> None:
    said = " ".join(summarise(report(measured([90.0]), random_data=True, evaluated_on="calibration data")))
    assert "random data, so none of this means anything" in said
    assert "calibration samples, which is too kind" in said


def test_a_synchronous_network_has_no_shorter_run() -> None:
    assert len(summarise(report(measured([90.0, 90.0]), synchronous={"latency": 6}))) == 1


def test_outputs_that_are_not_finite_are_said() -> None:
    found = summarise(report(measured([88.0, 89.5], finite=False), measured([80.0, 81.0])))
    assert any(sentence.startswith("Outputs are not finite") for sentence in found)
    assert not any("not finite" in sentence for sentence in summarise(report(measured([88.0, 89.5]))))
    first, second, *_ = summarise(report(measured(finite=False)))
    assert "cannot be compared with the ANN" in first
    assert second.startswith("Outputs are not finite")
