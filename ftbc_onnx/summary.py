"""What a report comes to, in sentences made of its numbers: how far the SNN is from the ANN, and what to do about it.

The first sentence says how far, by the best measure that there is: accuracy, else agreement with the ANN's decisions,
else the error of the output. The others are said only where a number calls for them:

1. the data are no judge: random, or those of the calibration;
2. the ANN itself is below `DOUBTFUL`: the data are probably not prepared as it expects; or its inputs get other numbers
   than they got from the calibration data (`ftbc_onnx.likeness`): the two are prepared differently;
3. the SNN is within `CLOSE` of the ANN: the shortest T from which on it stays so;
4. it is not: where the gap grows first (above half of the largest), or that no mean gap is above `SMALL`; whether the
   error of the output still falls (below `FALLS` of that at T/2); whether a site is clipped (more than `CLIPPED` of its
   activation above theta); whether biases are missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Any

from ftbc_onnx.likeness import Unlike
from ftbc_onnx.neurons import BINARY

CLOSE = 1.0
"""Points between SNN and ANN that are taken for close; percent, for errors of the output 10 times as many."""

DOUBTFUL = 50.0
"""Accuracy of the ANN, in percent, below which its data are looked at first."""

FEWEST = 32
"""Calibration samples below which a word is said of their number."""

SMALL = 0.01
"""Mean gap, of theta, below which a site does not stand out."""

FALLS = 0.9
"""Error at T over error at T/2 below which steps still help (1/2 is normal)."""

FEW = 10.0
"""Points that one sample may be, for a word on fewer steps."""

LOST = 0.5
"""Error of the output above which its course says nothing yet: deep networks start to follow late."""

CLIPPED = 0.05
"""Share of a site's activation above theta that is worth a word."""

Report = Mapping[str, Any]


def summarise(report: Report) -> list[str]:
    """Sentences about a conversion's report: the verdict first, then what to do."""
    evaluation = report["evaluation"]
    if evaluation is None:
        return ["Nothing was evaluated: add --eval-data, labelled samples that took no part in the calibration."]
    sentences = [_verdict(report, evaluation)]
    if report["random_data"]:
        sentences.append("It was calibrated on random data, so none of this means anything: give --calib-data.")
    if report["evaluated_on"] == "calibration data":
        sentences.append("These are calibration samples, which is too kind: add --eval-data for figures to rely on.")
    sentences += doubts(evaluation["ann_accuracy"])
    if report["calibration"] is not None and report["samples"] < FEWEST:
        sentences.append(
            f"It was calibrated on {report['samples']} samples, which are not enough to rely on: give {FEWEST} or "
            "more, better some hundreds (--calib-data, --calib-samples)."
        )
    if not evaluation.get("finite", True):
        sentences.append(
            "Outputs are not finite (NaN or infinite) on these data, so nothing is said of their error: look at the "
            "last layers of the model, and at the scale of the data."
        )
    other = unlike(evaluation)
    sentences += other
    if _distance(evaluation) <= CLOSE:
        return [*sentences, *_good(report, evaluation)]
    if other:
        return sentences
    return [*sentences, *_where(report, evaluation), *_steps(report, evaluation), *_causes(report)]


def doubts(ann: float | None) -> list[str]:
    """What to look at first where the ANN itself has few right decisions (percent, None if that is not known)."""
    if ann is None or ann >= DOUBTFUL:
        return []
    return [
        f"The ANN itself has only {ann:.1f} % on these data. If it should have more, look at the preprocessing "
        "(--scale, --mean, --std, --color, --layout), at --label-offset, and at the order of class folders before "
        "anything else."
    ]


def unlike(evaluation: Mapping[str, Any]) -> list[str]:
    """That data are prepared otherwise than those of the conversion (`ftbc_onnx.likeness`), of the first such input."""
    sentences = (Unlike.from_dict(found).sentence for found in evaluation["unlike"][:1])
    return [f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences]


def has_biases(report: Report) -> bool:
    """Whether plain conversion gives another network, to compare with."""
    plain = report["evaluation_without_bias"]
    return plain is not None and plain != report["evaluation"]


def _curve(evaluation: Mapping[str, Any]) -> tuple[list[float], float]:
    """The best measure after each step as points short of the ANN, and how many points one sample is."""
    if evaluation["accuracy"] is not None and evaluation["ann_accuracy"] is not None:
        return [evaluation["ann_accuracy"] - a for a in evaluation["accuracy"]], 100 / evaluation["samples"]
    if evaluation["agreement"] is not None:
        return [100 - a for a in evaluation["agreement"]], 100 / evaluation["samples"]
    if evaluation["output_gap"] is not None:
        return [10 * gap for gap in evaluation["output_gap"]], 0.0
    return [], 0.0


def _distance(evaluation: Mapping[str, Any]) -> float:
    curve, _ = _curve(evaluation)
    return curve[-1] if curve else 0.0


def _verdict(report: Report, evaluation: Mapping[str, Any]) -> str:
    steps, samples = report["steps"], evaluation["samples"]
    plain = report["evaluation_without_bias"]
    ann, accuracy, agreement = (evaluation[key] for key in ("ann_accuracy", "accuracy", "agreement"))
    if accuracy is not None:
        text = f"After T = {steps} steps the SNN is right on {accuracy[-1]:.1f} % of {samples} samples"
        if ann is not None:
            text += f", the ANN on {ann:.1f} %{_chance(ann - accuracy[-1], ann, samples)}"
        if has_biases(report):
            without = "plainly converted" if report["layers"] else "without temporal biases"
            text += f"; {without} it would be {plain['accuracy'][-1]:.1f} %"
        elif plain is not None and report["calibration"] is not None:
            text += "; no temporal biases were kept, as they did not hold on the samples held back"
        return text + "."
    if agreement is not None:
        return f"After T = {steps} steps the SNN decides as the ANN does on {agreement[-1]:.1f} % of {samples} samples."
    if evaluation["output_gap"] is not None:
        error = 100 * evaluation["output_gap"][-1]
        return f"After T = {steps} steps the SNN's output is off by {error:.1f} % of the ANN's mean absolute output."
    if not evaluation.get("finite", True):
        return f"After T = {steps} steps the SNN cannot be compared with the ANN on these {samples} samples."
    return f"The SNN ran on {samples} samples; without labels and without the ANN nothing can be said of its accuracy."


def _chance(difference: float, ann: float, samples: int) -> str:
    """Whether so many samples could tell the two apart: one standard error of the ANN's accuracy."""
    error = sqrt(ann * (100 - ann) / samples)
    if 0 < abs(difference) < error:
        return f" (fewer points apart than the standard error of {samples} samples, {error:.1f})"
    return ""


def _good(report: Report, evaluation: Mapping[str, Any]) -> list[str]:
    curve, sample = _curve(evaluation)
    if not curve or report["synchronous"] is not None:
        return []
    limit = max(CLOSE, sample)
    if limit > FEW:
        return []
    far = [t for t, distance in enumerate(curve) if distance > limit]
    first = far[-1] + 2 if far else 1
    if first >= report["steps"]:
        return []
    if evaluation["accuracy"] is not None and evaluation["ann_accuracy"] is not None:
        points = f"{limit:.2g} point{'' if limit == 1 else 's'}"
        close = f"the accuracy stays within {points} of the ANN's"
    elif evaluation["agreement"] is not None:
        close = f"at least {100 - limit:.4g} % of the decisions are the ANN's"
    else:
        close = f"the output's error stays within {10 * limit:.3g} %"
    return [f"From T = {first} on {close}: fewer steps may do, converted for them (-T)."]


def _where(report: Report, evaluation: Mapping[str, Any]) -> list[str]:
    """The first site whose gap is above half of the largest; or that means are right everywhere."""
    names = [site["name"] for site in report["sites"]]
    gaps = [evaluation["sites"][name]["gap_in_theta"] for name in names]
    if not gaps or any(gap is None for gap in gaps):
        return []
    last = [gap[-1] for gap in gaps]
    largest = max(range(len(last)), key=last.__getitem__)
    if last[largest] < SMALL:
        return [
            f"No site stands out: mean gaps at T are at most {_share(last[largest])}. What is left is the error of "
            f"single neurons, which gets smaller with {_finer(report)}."
        ]
    first = next((i for i, gap in enumerate(last) if gap > last[largest] / 2), largest)
    text = f"The gap at T is largest at site {largest + 1} of {len(names)}, '{names[largest]}': {_share(last[largest])}"
    if first != largest:
        text += f"; it first exceeds half of that at site {first + 1}, '{names[first]}'"
    looked_at = report["layers"] or report["synchronous"] is not None  # not by diagnose
    return [f"{text}." if looked_at else f"{text}. ftbc-onnx diagnose looks at the sites one by one."]


def _finer(report: Report) -> str:
    """What helps: what was not asked for or ruled out, and more steps."""
    synchronous, options = report["synchronous"] is not None, report["options"]
    neuron = "group" if synchronous else "signed-group"
    found = [] if options["binary"] else [f"more levels (--neuron {neuron} --levels K)"]
    one_level = report["neuron"].partition(",")[0] in BINARY and not synchronous
    if one_level and report["fittable_layers"] and not options["refit"]:
        found.append("--refit")
    return f"{', '.join(found)} or a larger -T" if found else "a larger -T"


def _share(gap: float) -> str:
    return f"{100 * gap:.2g} % of theta"


def _steps(report: Report, evaluation: Mapping[str, Any]) -> list[str]:
    """Whether the second half of the steps still helped, by the error of the output."""
    errors, half = evaluation["output_gap"], report["steps"] // 2
    if errors is None or half < 1 or report["synchronous"] is not None:
        return []
    before, now = errors[half - 1], errors[-1]
    course = f"({100 * before:.3g} % at T = {half}, {100 * now:.3g} % at T = {report['steps']})"
    if now < FALLS * before:
        return [f"The output's error still falls with T {course}: a larger -T helps."]
    if now < LOST:
        return [f"The output's error hardly falls with T any more {course}: a larger -T alone will not help."]
    return []


def _causes(report: Report) -> list[str]:
    """Clipping, a coding that the neuron cannot follow, and biases that are missing."""
    found = []
    clipped = [(site["activation"]["clipped"], site["name"]) for site in _known(report["sites"])]
    most, name = max(clipped, default=(0.0, ""))
    if most > CLIPPED:
        found.append(
            f"Site '{name}' loses {100 * most:.0f} % of its activation above theta, whatever T is: "
            f"try {_higher(report['options'])}."
        )
    name, _, coding = report["neuron"].partition(", ")
    if coding and name.startswith(("if", "group")):
        found.append(
            "Differential coding takes neurons that send both signs: these cannot say that a rate falls. Take "
            "--neuron signed-group or multi-threshold."
        )
    if report["calibration"] is None:
        found.append("No temporal biases were calibrated: give --calib-data, and leave out --rule none.")
    return found


def _higher(options: Mapping[str, Any]) -> str:
    """Thresholds that clip less than those of the options."""
    if options["threshold"] == "max":
        return "more calibration samples (--calib-samples)"
    if options["threshold"] == "percentile":
        return "a higher --percentile, or --threshold max"
    return "--threshold percentile or max"


def _known(sites: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [site for site in sites if site["activation"] is not None]
