"""Runtimes other than onnxruntime's Python package, and how each runs an emitted file of any form.

A runtime answers `scores`: for every case the output for a batch of images [n, ...], or the reason that it gives for
not running it. The step form is run step by step, the state handed back by a loop here or, for JavaScript, in
``tests/web/snn.mjs``.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from ftbc_onnx.graph.emit.one_step import NEXT, STEP, read_states

WEB = Path(__file__).resolve().parent.parent / "tests" / "web"

Feeds = Mapping[str, np.ndarray]
Run = Callable[[Feeds], dict[str, np.ndarray]]
"""One run: inputs by name -> outputs by name."""

Result = np.ndarray | str
"""The output, or why there is none."""


@dataclass(frozen=True)
class Case:
    """An emitted file with one input and one output besides its states.

    Attributes:
        name: of the case.
        path: of the file.
        steps: T.
    """

    name: str
    path: Path
    steps: int


def drive(run: Run, case: Case, images: np.ndarray, full: bool = False) -> np.ndarray:
    """The output for images: one run, or T runs of the step form with its states handed on.

    Args:
        run: of the file.
        case: the file.
        images: a batch.
        full: hand in the states before the first step in the shape that they have later.
    """
    model = onnx.load(case.path)
    feeds, output = {model.graph.input[0].name: images}, model.graph.output[0].name
    if all(value.name != STEP for value in model.graph.input):
        return run(feeds)[output]
    states = read_states(model)
    shapes = {v.name: [d.dim_value or len(images) for d in v.type.tensor_type.shape.dim] for v in model.graph.output}
    feeds |= {STEP: np.array(0, np.int64)}
    for state in states:
        feeds[state.input] = np.broadcast_to(state.start, shapes[state.output]).copy() if full else state.start
    for _ in range(case.steps):
        found = run(feeds)
        feeds[STEP] = found[NEXT].astype(np.int64).reshape(())
        feeds |= {state.input: found[state.output] for state in states}
    return found[output]


@dataclass(frozen=True)
class Package:
    """A runtime from PyPI.

    Attributes:
        name: of the runtime.
        module: what is imported.
        opener: opens a file.
        full: whether the states of the step form must have their full shape from the start.
    """

    name: str
    module: str
    opener: Callable[[Path], Run]
    full: bool = False

    def missing(self) -> str | None:
        """What has to be installed; None: nothing."""
        there = importlib.util.find_spec(self.module) is not None
        return None if there else f'pip install "ftbc-onnx[portability]", for the module {self.module}'

    def version(self) -> str:
        """The package's version."""
        return importlib.metadata.version(importlib.metadata.packages_distributions()[self.module][0])

    def scores(self, cases: Sequence[Case], images: np.ndarray) -> dict[str, Result]:
        """Output or reason of every case."""
        found: dict[str, Result] = {}
        for case in cases:
            try:
                found[case.name] = drive(self.opener(case.path), case, images, self.full)
            except Exception as error:  # whatever a runtime raises is its answer
                found[case.name] = str(error) or type(error).__name__
        return found


def open_onnxruntime(path: Path) -> Run:
    """onnxruntime on the CPU, with the graph optimisations that it has by default."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(names, dict(feeds)), strict=True))


def open_reference(path: Path) -> Run:
    """The standard's reference in NumPy, operator by operator."""
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(str(path))
    return lambda feeds: dict(zip(evaluator.output_names, evaluator.run(None, dict(feeds)), strict=True))


def open_openvino(path: Path) -> Run:
    """OpenVINO on the CPU, in float32 (by default it may take bfloat16 where the processor has it)."""
    import openvino

    model = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    names = [value.name for value in onnx.load(path).graph.output]

    def run(feeds: Feeds) -> dict[str, np.ndarray]:
        found = model(dict(feeds))
        return {name: np.array(found[number]) for number, name in enumerate(names)}

    return run


def open_opencv(path: Path) -> Run:
    """OpenCV's dnn module; it knows no tensors without axes."""
    import cv2

    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    network = cv2.dnn.readNetFromONNX(str(path))
    names = [value.name for value in onnx.load(path).graph.output]

    def run(feeds: Feeds) -> dict[str, np.ndarray]:
        for name, value in feeds.items():
            network.setInput(np.atleast_1d(value), name)
        return dict(zip(names, network.forward(names), strict=True))

    return run


def open_tract(path: Path) -> Run:
    """tract, which wants the shape of every input beforehand."""
    import tract

    graph = onnx.load(path).graph
    inputs, outputs = [value.name for value in graph.input], [value.name for value in graph.output]
    opened: dict[tuple[str, ...], Any] = {}

    def run(feeds: Feeds) -> dict[str, np.ndarray]:
        kinds = {np.dtype(np.float32): "f32", np.dtype(np.int64): "i64"}
        facts = tuple(",".join([*map(str, feeds[name].shape), kinds[feeds[name].dtype]]) for name in inputs)
        if facts not in opened:
            model = tract.onnx().load(str(path))
            for number, fact in enumerate(facts):
                model.set_input_fact(number, fact)
            opened[facts] = model.into_model().into_runnable()
        values = opened[facts].run([feeds[name] for name in inputs])
        return {name: value.to_numpy() for name, value in zip(outputs, values, strict=True)}

    return run


@dataclass(frozen=True)
class JavaScript:
    """A runtime from npm, in a process of Node.js that runs all cases.

    Attributes:
        name: of the runtime.
        package: of npm.
        script: in ``tests/web``.
        browser: whether it needs one.
    """

    name: str
    package: str
    script: str
    browser: bool = False

    def missing(self) -> str | None:
        """What has to be installed; None: nothing."""
        if shutil.which("node") is None:
            return "Node.js 20 or newer"
        needed = [self.package, *(["playwright-core"] if self.browser else [])]
        if not all((WEB / "node_modules" / name).is_dir() for name in needed):
            return "npm ci --ignore-scripts, in tests/web"
        return "Chromium (on the PATH, or its path in CHROMIUM)" if self.browser and chromium() is None else None

    def version(self) -> str:
        """The package's version."""
        return str(json.loads((WEB / "node_modules" / self.package / "package.json").read_text())["version"])

    def scores(self, cases: Sequence[Case], images: np.ndarray) -> dict[str, Result]:
        """Output or reason of every case.

        Raises:
            subprocess.CalledProcessError: the process failed as a whole; what it said goes to stderr.
        """
        with tempfile.TemporaryDirectory() as folder:
            job, result = Path(folder, "job.json"), Path(folder, "result.json")
            job.write_text(json.dumps({"images": _plain(images), "cases": [as_job(case) for case in cases]}))
            before = [chromium()] if self.browser else []
            subprocess.run(["node", str(WEB / self.script), *map(str, [*before, job, result])], check=True, timeout=600)
            results = json.loads(result.read_text())["results"]
        return {
            name: found.get("error") or np.array(found["data"], np.float32).reshape(found["dims"])
            for name, found in results.items()
        }


def chromium() -> str | None:
    """Where Chromium is: what CHROMIUM says, or the first on the PATH."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


def _plain(value: np.ndarray) -> dict[str, Any]:
    return {"dims": list(value.shape), "data": value.reshape(-1).tolist()}


def as_job(case: Case) -> dict[str, Any]:
    """A case as the scripts of tests/web take it."""
    model = onnx.load(case.path)
    stepped = any(value.name == STEP for value in model.graph.input)
    states = [[s.input, s.output, _plain(s.start)] for s in read_states(model)] if stepped else None
    return {"name": case.name, "file": str(case.path), "steps": case.steps, "states": states}


ONNXRUNTIME = Package("onnxruntime, Python", "onnxruntime", open_onnxruntime)
"""What the others are compared with."""

RUNTIMES: tuple[Package | JavaScript, ...] = (
    Package("onnx reference evaluator", "onnx", open_reference),
    JavaScript("onnxruntime-node", "onnxruntime-node", "node.mjs"),
    JavaScript("onnxruntime-web", "onnxruntime-web", "browser.mjs", browser=True),
    Package("OpenVINO", "openvino", open_openvino, full=True),
    Package("OpenCV dnn", "cv2", open_opencv),
    Package("tract", "tract", open_tract, full=True),
)
