"""Emitted files in other runtimes than onnxruntime's Python package, and the examples of docs/portability.md."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers import numbers, parse, tool
from networks import CALIBRATION, RELU, digits, network_of, random_plan

from ftbc_onnx import convert
from ftbc_onnx.graph.emit import emit
from ftbc_onnx.neurons import NeuronSpec

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "portability.md").read_text(encoding="utf-8")

STEPS, IMAGES = 3, 8
NEURONS = {
    "if": {"neuron": "if"},
    "signed-group": {"neuron": "signed-group", "levels": 8},
    "differential": {"neuron": "signed-group", "levels": 8, "coding": "differential"},
}
FORMS = ("unrolled", "fused", "folded", "loop", "step")


runtimes, portability = tool("runtimes"), tool("portability")
BY_NAME = {runtime.name: runtime for runtime in runtimes.RUNTIMES}

LACKS = {("OpenCV dnn", "loop"), ("tract", "loop")}
"""(runtime, form) that does not run."""


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], object]:
    """(neuron, form) -> a file, from one plan per neuron."""
    folder = tmp_path_factory.mktemp("portability")
    network, found = network_of(onnx.load(RELU)), {}
    for neuron, options in NEURONS.items():
        plan = convert(RELU, CALIBRATION, steps=STEPS, calib_samples=64, verify=False, threshold="mse", **options).plan
        for form in FORMS:
            path = folder / f"{neuron}-{form}.onnx"
            onnx.save(emit(network, plan, form).model, path)
            found[neuron, form] = runtimes.Case(f"{neuron}-{form}", path, STEPS)
    return found


@pytest.fixture(scope="module")
def expected(cases: dict) -> dict[str, np.ndarray]:
    """The logits of onnxruntime, by case."""
    return runtimes.ONNXRUNTIME.scores(list(cases.values()), digits("test", IMAGES)[0])


@pytest.mark.parametrize("name", BY_NAME)
def test_same_decisions(name: str, cases: dict, expected: dict[str, np.ndarray]) -> None:
    runtime = BY_NAME[name]
    if lacking := runtime.missing():
        pytest.skip(f"{name} is not installed: {lacking}")
    found = runtime.scores(list(cases.values()), digits("test", IMAGES)[0])
    for (neuron, form), case in cases.items():
        result = found[case.name]
        if (name, form) in LACKS:
            assert isinstance(result, str), f"{name} runs {form} now: say so in docs/portability.md"
            continue
        assert isinstance(result, np.ndarray), f"{case.name}: {result}"
        agreement = portability.compare(result, expected[case.name])
        assert agreement.same == 1, case.name
        assert agreement.largest < 0.25, case.name  # a spike or two, of logits to about 10
        if neuron != "differential":
            assert agreement.apart <= 0.125, case.name


def test_the_forms_agree_in_onnxruntime(expected: dict[str, np.ndarray]) -> None:
    """So that what is compared with means something: all forms, and different networks."""
    for neuron in NEURONS:
        first = expected[f"{neuron}-unrolled"]
        assert first.shape == (IMAGES, 10)
        assert np.ptp(first, axis=1).min() > 1
        for form in FORMS[1:]:
            assert portability.compare(expected[f"{neuron}-{form}"], first).same == 1
    assert not np.array_equal(expected["if-unrolled"], expected["signed-group-unrolled"])


def test_openvino_refuses_a_loop_of_unknown_shapes_or_runs_it_right(tmp_path: Path) -> None:
    """It runs loops whose states grow, and gives wrong numbers: none is written that it would take."""
    pytest.importorskip("openvino", reason="pip install 'ftbc-onnx[portability]'")
    text = "g (float[N,1,S] x) => (float[N,2,R] y) { c = Conv<strides=[2]>(x, w) r = Relu(c) y = Conv(r, v) }"
    network = network_of(parse(text, w=numbers(2, 1, 3), v=numbers(2, 2, 2)))
    path, feeds = tmp_path / "loop.onnx", {"x": numbers(2, 1, 11)}
    onnx.save(emit(network, random_plan(network, NeuronSpec("signed")), "loop").model, path)
    right = runtimes.open_onnxruntime(path)(feeds)["y"]
    try:
        found = runtimes.open_openvino(path)(feeds)["y"]
    except RuntimeError as error:
        assert "rank" in str(error)  # noqa: PT017
    else:
        np.testing.assert_allclose(found, right, atol=1e-4)


class TestComparison:
    """The tool's own arithmetic."""

    LOGITS = np.array([[0, 1, 2], [3, 1, 0], [0, 5, 4], [1, 0, 0]], np.float32)

    def test_equal(self) -> None:
        assert portability.compare(self.LOGITS, self.LOGITS) == portability.Agreement(1, 0, 0)

    def test_one_decision_and_two_outputs_differ(self) -> None:
        found = self.LOGITS.copy()
        found[0, 0] += 1e-5
        found[1, 1] = 2.5
        found[2, 2] = 6
        agreement = portability.compare(found, self.LOGITS)
        assert agreement == portability.Agreement(0.75, 2, 0.5)
        assert str(agreement) == "75 %; 2.0e+00; 50 %"

    def test_another_shape_is_no_agreement(self) -> None:
        with pytest.raises(ValueError, match=r"the output is \[4, 2\], onnxruntime's is \[4, 3\]"):
            portability.compare(self.LOGITS[:, :2], self.LOGITS)

    def test_the_worst_network_is_shown_and_reasons_are(self) -> None:
        off = self.LOGITS + np.float32(0.5)
        assert portability.cell([self.LOGITS, off], [self.LOGITS, self.LOGITS]) == "100 %; 5.0e-01; 100 %"
        assert portability.cell([self.LOGITS, "no"], [self.LOGITS, self.LOGITS]) == "does not run"
        assert (
            portability.reason("node 3 failed\n\nCaused by:\n Loop is not supported\nstack") == "Loop is not supported"
        )
        assert portability.reason(f"a{'b' * 100} {'c' * 100}") == f"... {'c' * 100}"


def test_what_a_runtime_raises_is_its_answer(tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    onnx.save(parse("g (float[N,2] x) => (float[N,3] y) { y = Gather<axis=1>(x, i) }", i=np.array([0, 1, 5])), path)
    (found,) = runtimes.ONNXRUNTIME.scores([runtimes.Case("bad", path, 1)], numbers(2, 2)).values()
    assert "5" in found
    assert "Gather" in found


# the page


def example(language: str, heading: str) -> str:
    """The first block of a language below a heading of the page."""
    section = PAGE.partition(f"\n### {heading}\n")[2] or PAGE.partition(f"\n## {heading}\n")[2]
    found = re.search(rf"```{language}\n(.*?)```", section, re.DOTALL)
    assert found is not None, f"no {language} under {heading}"
    return found[1]


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder with what the page's first example writes, and the digit that onnxruntime finds."""
    folder = tmp_path_factory.mktemp("deployed")
    shutil.copytree(ROOT / "models", folder / "models", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    assert run_python(example("python", "Deployment"), folder) == ""
    logits = onnxruntime.InferenceSession(folder / "digits_snn.onnx").run(None, {"image": digits("test", 1)[0]})[0]
    return folder, str(logits.argmax())


def run_python(code: str, folder: Path) -> str:
    """Run an example in a folder, with this checkout's package; returns what it prints."""
    there = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=there, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_python_example(deployed: tuple[Path, str]) -> None:
    folder, digit = deployed
    assert run_python(example("python", "Python"), folder) == digit


def test_example_of_the_states(tmp_path: Path) -> None:
    """What it writes is what the JavaScript loop is given by the tool."""
    network = network_of(onnx.load(RELU))
    path = tmp_path / "digits_step.onnx"
    onnx.save(emit(network, random_plan(network, NeuronSpec("signed-st")), "step").model, path)
    run_python(example("python", "Step by step"), tmp_path)
    job = runtimes.as_job(runtimes.Case("step", path, STEPS))
    assert runtimes.json.loads((tmp_path / "states.json").read_text()) == job["states"]
    assert len(job["states"]) == 2 * len(network.sites) + 1


def test_node_example(deployed: tuple[Path, str]) -> None:
    if lacking := BY_NAME["onnxruntime-node"].missing():
        pytest.skip(f"onnxruntime-node is not installed: {lacking}")
    folder, digit = deployed
    modules = folder / "node_modules"
    modules.symlink_to(runtimes.WEB / "node_modules")
    (folder / "digit.mjs").write_text(example("js", "JavaScript"))
    done = subprocess.run(["node", "digit.mjs"], cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    modules.unlink()
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == digit


def test_browser_example(deployed: tuple[Path, str]) -> None:
    if lacking := BY_NAME["onnxruntime-web"].missing():
        pytest.skip(f"onnxruntime-web is not installed: {lacking}")
    folder, digit = deployed
    (folder / "index.html").write_text(example("html", "JavaScript"))
    command = ["node", str(runtimes.WEB / "browser.mjs"), runtimes.chromium(), "--page", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == digit


def test_cpp_example(deployed: tuple[Path, str]) -> None:
    headers, compiler = os.environ.get("ONNXRUNTIME_INCLUDE"), shutil.which("c++")
    library = next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"), None)
    if headers is None or compiler is None or library is None:
        pytest.skip("needs c++, ONNXRUNTIME_INCLUDE (a folder with onnxruntime_cxx_api.h), and libonnxruntime.so")
    folder, digit = deployed
    (folder / "digit.cpp").write_text(example("cpp", "C++"))
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):  # as the linker and the loader look for it
        (folder / name).symlink_to(library)
    link = ["-L.", "-lonnxruntime", "-Wl,-rpath,$ORIGIN", "-o", "digit"]
    build = subprocess.run(
        [compiler, "-std=c++17", f"-I{headers}", "digit.cpp", *link],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert build.returncode == 0, build.stderr
    done = subprocess.run(["./digit"], cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == digit, done.stderr
