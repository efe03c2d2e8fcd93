"""The scripts in tools/: what they make of what they measure."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from helpers import TOOLS, run, tool
from networks import RELU, digits, network_of, random_plan

from ftbc_onnx.graph.emit import emit
from ftbc_onnx.neurons import NeuronSpec
from ftbc_onnx.runtime import CPU

ROOT = TOOLS.parent


@pytest.fixture(autouse=True)
def beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts find each other."""
    monkeypatch.setattr(sys, "path", [str(TOOLS), *sys.path])


@pytest.mark.parametrize("power", [0.5, 1.0, 1.7])
def test_an_exponent_is_a_slope(power: float) -> None:
    scaling = tool("scaling")
    rows = [{"T": t, "run, s": 3 * t**power if t > 4 else 1.0} for t in (1, 2, 4, 8, 16, 32, 64, 128)]
    assert scaling.exponent(rows, "T", "run, s") == pytest.approx(power)


def _measured(case: Any, *, threads: int | None) -> dict[str, Any]:
    if case.steps == 3:
        raise ValueError("no such case")
    return {"case": asdict(case), "threads": threads}


@pytest.mark.parametrize("jobs", [1, 2])
def test_cases_are_measured_once_and_kept_as_they_come(jobs: int, tmp_path: Path) -> None:
    accuracy, results = tool("accuracy"), tmp_path / "results.jsonl"
    cases = [accuracy.Case("part", "network", "label", steps) for steps in (1, 2, 1)]
    accuracy.measure(cases, results, _measured, jobs)
    rows = accuracy.read(results)
    assert sorted(row["case"]["steps"] for row in rows) == [1, 2]
    assert {row["threads"] for row in rows} == {None if jobs == 1 else max(CPU.cores // jobs, 1)}
    failing = [accuracy.Case("part", "network", "label", steps) for steps in (3, 5, 6)]
    with pytest.raises(RuntimeError, match=r"no such case .*steps=3"):
        accuracy.measure([*cases, *failing], results, _measured, jobs)
    if jobs == 1:  # the others were not begun; with two, they may have been done meanwhile
        assert accuracy.read(results) == rows
    results.write_text("".join(json.dumps(row) + "\n" for row in rows))
    accuracy.measure([*cases, accuracy.Case("part", "network", "label", 4)], results, _measured, jobs)
    assert [row["case"]["steps"] for row in accuracy.read(results)][2:] == [4]


@pytest.mark.parametrize("name", ["accuracy", "reproduce"])
def test_a_case_that_fails_is_one_line(name: str, tmp_path: Path) -> None:
    """Here the folder has no images; that of the results is made."""
    results = tmp_path / "new" / "results.jsonl"
    done = CliRunner().invoke(tool(name).main, ["--data", str(tmp_path), "--only", "refit", "--results", str(results)])
    assert done.exit_code == 1
    assert "Error: [Errno 2] No such file or directory: " in done.output
    assert "(in Case(part=" in done.output
    assert results.parent.is_dir()


PLAIN = [0.0, 10.0]


def test_a_runtime_that_is_missing_is_said_before_anything_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    portability = tool("portability")

    class Missing:
        name = "none"

        def missing(self) -> str:
            return "pip install none"

    monkeypatch.setattr(portability, "RUNTIMES", (Missing(),))
    monkeypatch.setattr(portability, "make_cases", lambda _: pytest.fail("measured"))
    done = CliRunner().invoke(portability.main, [])
    assert done.exit_code == 1
    assert "none: not installed (pip install none)" in done.output
    assert "the page has all runtimes: install them and leave out --only, or add --print" in done.output


def test_a_network_whose_outputs_are_not_finite_has_a_row() -> None:
    row = {"file": "timm_net_dynamo", "refused": None, "sites": 1, "neurons": 2000, "form": "loop", "bitwise": True}
    shown = tool("libraries")._shown({**row, "node_classes": {}, "gap": None})
    assert (shown["gap, t = 1"], shown["gap, t = 4"]) == ("not finite", "not finite")


def test_rules_meet_thresholds_in_a_table_per_t() -> None:
    page = tool("accuracy_page")

    def row(
        steps: int, accuracy: float, seed: int = 0, plain: list[float] | None = PLAIN, **options: str
    ) -> dict[str, Any]:
        case = {"label": "if", "steps": steps, "seed": seed, "options": {"neuron": "if", **options}}
        return {"case": case, "accuracy": [0.0, accuracy], "no_bias": plain}

    rows = [row(2, 50.0, threshold="mse"), row(2, 40.0, threshold="max"), row(2, 30.0, threshold="max", rule="paper")]
    rows += [row(2, 42.0, 1, threshold="max"), row(2, 20.0, threshold="mse", rule="paper")]
    rows += [row(2, 44.0, threshold="percentile", plain=None)]
    text = page._grid([*rows, row(4, 60.0, threshold="mse")])
    assert "| neuron | rule | mse | percentile | max |" in text
    assert "| if | paper | 20.0 [10.0] |  | 30.0 [10.0] |" in text
    assert "| if | solve | 50.0 [10.0] | 44.0 | 41.0 +- 1.4 (2) [10.0] |" in text
    assert "T = 4" not in text  # one threshold is no comparison


def test_the_published_rule_has_its_curve_from_one_conversion_where_thresholds_do_not_depend_on_t() -> None:
    page = tool("accuracy_page")

    def row(steps: int, seed: int, threshold: str, accuracy: list[float], rule: str = "paper") -> dict[str, Any]:
        case = {"label": "if", "steps": steps, "seed": seed, "options": {"rule": rule, "threshold": threshold}}
        return {"case": case, "accuracy": accuracy, "no_bias": None}

    rows = [row(4, seed, "max", [10.0, 20.0 + seed, 30.0, 40.0]) for seed in (0, 2)]
    rows += [row(2, 0, "max", [11.0, 28.0]), row(4, 0, "mse", [1.0, 2.0, 3.0, 4.0])]
    rows += [row(4, 0, "percentile", [1.0, 2.0, 3.0, 5.0], "solve")]
    text = page._grid(rows)
    assert "T = 1:\n\n| neuron | rule | max |" in text
    assert "| if | paper | 10.5 +- 0.7 (2) |" in text  # the shortest run that reaches a T counts there
    assert "| if | paper | 25.0 +- 4.2 (2) |" in text
    assert "| if | paper | 4.0 |  | 40.0 +- 0.0 (2) |\n| if | solve |  | 5.0 |  |" in text
    grid = [c for c in tool("accuracy").cases() if c.part == "grid" and c.options.get("rule") == "paper"]
    assert {c.steps for c in grid if c.options["threshold"] in page.WHOLE} == {32}
    assert {c.steps for c in grid if c.options["threshold"] not in page.WHOLE} == set(page.STEPS)


def test_a_choice_is_a_row_over_its_seeds() -> None:
    def row(accuracy: float, steps: int = 4, **options: Any) -> dict[str, Any]:
        case = {"label": "if", "steps": steps, "options": {"neuron": "if", "levels": 1, **options}}
        return {"case": case, "accuracy": [0.0, accuracy], "no_bias": [0.0, accuracy - 10]}

    found = [row(50.0, gate=False), row(40.0, gain=True), row(54.0, gate=False), row(60.0, 8, gate=False)]
    rows = tool("accuracy_page")._choices(found)
    assert [(r["T"], r["options"], r["accuracy"], r["no bias"]) for r in rows] == [
        (4, "gate=False", "52.0 +- 2.8 (2)", "42.0"),
        (4, "gain=True", "40.0", "30.0"),
        (8, "gate=False", "60.0", "50.0"),
    ]


def test_numbers_of_calibration_samples_stand_beside_that_of_the_neurons() -> None:
    def row(label: str, steps: int, samples: int, accuracy: float, chosen: int = 0) -> dict[str, Any]:
        case = {"label": label, "steps": steps, "samples": samples, "seed": 1}
        trials = [{"what": "biases at 2 of 2 sites"}, {"what": "no biases"}]
        return {"case": case, "accuracy": [0.0, accuracy], "selections": [{"trials": trials, "chosen": chosen}]}

    found = [row("if", 4, 1024, 60.0), row("if", 4, 64, 50.0), row("if", 4, 64, 54.0, 1)]
    neurons = [row("if", 4, 256, 55.0), row("if", 8, 256, 70.0, 1), row("signed", 4, 256, 80.0)]
    table = tool("accuracy_page")._samples(found, neurons).splitlines()[-6:]
    assert table[0] == "| neuron | T | 64 | 256 | 1024 |"
    assert table[2:4] == ["| if | 4 | 52.0 +- 2.8 (2) | 55.0 | 60.0 |", ""]
    assert table[4] == "The images held back chose no biases for if with 64 images (seed 1)."


def test_a_network_that_states_its_thresholds_has_its_curve_from_one_conversion() -> None:
    reproduce = tool("reproduce")
    names = ["cifar10_resnet34_qcfs8", "cifar10_vit_qcfs8", "cifar10_resnet20_clipped"]
    cases = [case for case in reproduce.cases(names) if case.label in ("published", "dual")]
    steps = {(n, s): sorted({c.steps for c in cases if (c.network, c.seed) == (n, s)}) for n in names for s in (0, 1)}
    assert [steps[name, 0] for name in names] == [[32], [1, 2, 4, 8, 16, 32], [1, 2, 4, 8, 16, 32]]
    assert [steps[name, 1] for name in names] == [[8, 32], [1, 2, 4, 8, 16, 32], [1, 2, 4, 8, 16, 32]]
    first = [case.steps for case in cases if case.seed == 1]
    assert first.index(16) > max(place for place, t in enumerate(first) if t <= 8)  # long runs come after all others

    def row(network: str, t: int, accuracy: list[float]) -> dict[str, Any]:
        return {"case": {"network": network, "label": "published", "steps": t, "seed": 0}, "accuracy": accuracy}

    assert reproduce._curve([row(names[0], 4, [1.0, 2.0, 3.0, 4.0])], "accuracy") == {1: [1.0], 2: [2.0], 4: [4.0]}
    single = [row(names[1], 2, [5.0, 6.0]), row(names[1], 1, [7.0])]
    assert reproduce._curve(single, "accuracy") == {1: [7.0], 2: [6.0]}


def test_rows_that_were_fitted_to_fewer_images_say_so() -> None:
    """Those that are named so, and those of networks whose thresholds are chosen; rows without biases are one row."""
    reproduce = tool("reproduce")

    def row(network: str, label: str, t: int, accuracy: float) -> dict[str, Any]:
        case = {"network": network, "label": label, "steps": t, "seed": 0}
        return {"case": case, "ann": 90.0, "accuracy": [accuracy] * t, "no_bias": [10.0] * t, "seconds": 1.0}

    name = "cifar10_resnet20_qcfs9"
    both = reproduce._rows(name, [row(name, "published-750", 32, 40.0), row(name, "published", 8, 50.0)])
    cells = {found["row"]: (found["T=1"], found["T=32"]) for found in both}
    assert cells["integrate-and-fire, no bias"] == ("10.0", "10.0")
    assert cells["published rule (alpha 0.4, 3 x 200 + 150 images)"] == ("40.0", "40.0")
    assert cells["gain of published rule (alpha 0.4, 5 x 200 images)"] == ("+40.0", "")
    assert cells[reproduce.CLOSED] == ("50", "")
    (_, plain, *_) = reproduce._rows("cifar10_vit_qcfs9", [row("cifar10_vit_qcfs9", "published", 1, 40.0)])
    assert plain["row"] == "published rule (alpha 0.4, 3 x 200 + 150 images)"


def test_rows_that_can_be_measured() -> None:
    reproduce = tool("reproduce")
    names = ["cifar10_resnet20_qcfs8", "cifar10_vit_qcfs8", "cifar10_resnet20_clipped", "digits_relu"]
    assert {case.label for case in reproduce.cases(names)} == set(reproduce.MEASURED)


def test_another_network_of_the_same_name_is_refused(tmp_path: Path) -> None:
    reproduce, path = tool("reproduce"), tmp_path / "digits_own.onnx"
    path.write_bytes(b"a network")
    row = {"case": {"network": "digits_own"}, "network_sha256": reproduce.digest_of(path)}
    reproduce.check_networks({"digits_own": path}, [row, {"case": {"network": "digits_own"}}])
    path.write_bytes(b"another")
    with pytest.raises(click.UsageError, match="is not the network that was measured as 'digits_own'"):
        reproduce.check_networks({"digits_own": path}, [row])
    with pytest.raises(click.UsageError, match="is not the network that was measured as 'digits_own'"):
        reproduce.check_networks({"digits_own": path}, [{"case": {"network": "digits_own"}}])  # which was it?
    with pytest.raises(click.UsageError, match="a network is called cifar10_"):
        reproduce.check_networks({"resnet20": path}, [])


@pytest.mark.parametrize(
    ("shipped", "name", "which"),
    [("qcfs4", "cifar10_mine", "are all QCFS"), ("clipped", "cifar10_qcfs", "are not all QCFS")],
)
def test_a_name_says_whether_activations_are_qcfs(shipped: str, name: str, which: str) -> None:
    """The rows of a network whose activations state their thresholds are others."""
    reproduce, path = tool("reproduce"), ROOT / f"models/cifar10_resnet20_{shipped}.onnx"
    reproduce.check_networks({path.stem: path}, [])
    with pytest.raises(click.UsageError, match=f"its activations {which}, its name says otherwise: rename it"):
        reproduce.check_networks({name: path}, [])


def test_every_network_that_is_shipped_is_the_one_that_was_measured() -> None:
    reproduce, shipped = tool("reproduce"), {path.stem: path for path in (ROOT / "models").glob("*.onnx")}
    rows = reproduce.read(reproduce.RESULTS)
    assert shipped.keys() <= {row["case"]["network"] for row in rows}
    reproduce.check_networks(shipped, rows)


def test_the_page_is_beside_its_figures(tmp_path: Path) -> None:
    page = (ROOT / "docs/reproduced.md").read_bytes()
    command = CliRunner().invoke(tool("reproduce").main, ["--write", "--results", str(tmp_path / "none.jsonl")])
    assert command.exit_code == 2
    assert "does not exist: nothing to write" in command.output
    lines = (ROOT / "docs/reproduced.jsonl").read_text().splitlines()[:3]
    (tmp_path / "own.jsonl").write_text("\n".join(lines) + "\n")
    command = CliRunner().invoke(tool("reproduce").main, ["--write", "--results", str(tmp_path / "own.jsonl")])
    assert command.exit_code == 0, command.output
    assert (tmp_path / "own.md").exists()
    assert (ROOT / "docs/reproduced.md").read_bytes() == page


def test_gains_are_shares_of_the_gap_to_the_ann_where_there_is_one() -> None:
    closed = tool("reproduce")._closed(90.0, {1: 40.0, 2: 89.0, 4: 86.0}, {1: 65.0, 2: 90.0, 4: 85.0})
    assert closed == {1: "50", 4: "-25"}


def test_forms_stand_side_by_side() -> None:
    benchmark = tool("benchmark")
    cases = [(1, "unrolled", 2.0), (1, "fused", 1.0), (32, "fused", 1.5)]
    rows = [{"network": "n", "batch": b, "steps": 8, "form": form, "x": x} for b, form, x in cases]
    assert benchmark.pivot(rows, "x") == [
        {"network": "n", "batch": 1, "steps": 8, "unrolled": 2.0, "fused": 1.0},
        {"network": "n", "batch": 32, "steps": 8, "fused": 1.5},
    ]


@pytest.mark.parametrize("variant", ["float", "weights", "ConvInteger", "QLinearConv"])
def test_layers_in_integers_decide_alike(variant: str, tmp_path) -> None:
    integers = tool("integer_path")
    network = network_of(onnx.load(RELU))
    plan = random_plan(network, NeuronSpec("if"), 4)
    model = integers.folded(emit(network, plan, "fused").model, tmp_path)
    rewriting = integers.Integers(model, variant)
    feeds = {"image": digits("test", 64)[0]}
    (plain,), (found,) = run(model, feeds).values(), run(rewriting.rewritten(), feeds).values()
    assert rewriting.layers == (0 if variant == "float" else 2 * 4)
    assert np.mean(plain.argmax(-1) == found.argmax(-1)) > 0.9


def test_a_row_for_every_file_of_a_folder(tmp_path: Path) -> None:
    """Converted once; what is refused has a row, too."""
    libraries, folder, results = tool("libraries"), tmp_path / "nets", tmp_path / "rows.jsonl"
    folder.mkdir()
    for name in ("timm_small_dynamo", "paddle_a_b_c_paddle"):
        shutil.copy(RELU, folder / f"{name}.onnx")
    (folder / "torchvision_broken_torchscript.onnx").write_bytes(b"no network")
    first = CliRunner().invoke(libraries.main, [str(folder), "--results", str(results)], catch_exceptions=False)
    assert "paddle_a_b_c_paddle: equal" in first.output
    assert "torchvision_broken_torchscript: '" in first.output
    page = results.with_suffix(".md").read_text()
    assert "3 files: 1 refused, and 2 equal" in page
    assert "| a_b_c | paddle | paddle | 4 |" in page
    assert "| broken | torchvision | torchscript |" in page
    again = CliRunner().invoke(libraries.main, [str(folder), "--results", str(results)], catch_exceptions=False)
    assert again.output == ""
    assert len(results.read_text().splitlines()) == 3


def test_an_architecture_that_cannot_be_exported_is_named(tmp_path: Path) -> None:
    done = CliRunner().invoke(tool("export_libraries").main, [str(tmp_path / "new"), "paddle:none", "timm:none"])
    assert done.exit_code == 0
    assert "paddle:none: " in done.output
    assert "timm:none: " in done.output
    assert list((tmp_path / "new").iterdir()) == []
