"""Run a network in the step form, step by step: its state stays on the device, between steps it is not copied.

In short:

    runner = StepRunner("model.snn_T8.onnx")
    for frame in frames:
        scores = runner.step(frame)["logits"]        # as if the run ended here
    runner.reset()

The state is that of all samples of a batch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from ftbc_onnx import images
from ftbc_onnx.config import check_margin, check_positive
from ftbc_onnx.early_exit import is_clear
from ftbc_onnx.errors import ConfigError, DataError, ModelError
from ftbc_onnx.graph.emit.one_step import NEXT, STEP, read_states
from ftbc_onnx.graph.files import input_specs, load_snn
from ftbc_onnx.graph.provenance import read_plan
from ftbc_onnx.plan import SpikingPlan
from ftbc_onnx.runtime import Device, Session, choose_device

Inputs = np.ndarray | Mapping[str, np.ndarray]


class StepRunner:
    """A session and the state of its neurons.

    Attributes:
        t: steps done since the start.
        steps: T, the steps that biases were calibrated for; later steps have none.
    """

    def __init__(
        self,
        model: Any,
        plan: SpikingPlan | None = None,
        device: str | Device = "auto",
        optimise: bool = True,
    ) -> None:
        """Open a network in the step form.

        Args:
            model: path, bytes, or an ``onnx.ModelProto`` as `ftbc_onnx.convert` gives it.
            plan: its plan; None: as its metadata say.
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
            optimise: False switches graph optimisations off, for bitwise comparisons.

        Raises:
            ModelError: it cannot be read, or is not in the step form.
            DeviceError: the device does not start.
        """
        proto = load_snn(model) if isinstance(model, (str, os.PathLike, bytes)) else model
        if not hasattr(proto, "graph"):
            raise ModelError(f"the model is a {type(model).__name__}: give a path, bytes, or the model of a conversion")
        self._states = read_states(proto)
        plan = read_plan(proto) if plan is None else plan
        self.steps = plan.steps
        self._window = plan.readout
        self._session = Session(proto, choose_device(device) if isinstance(device, str) else device, optimise)
        hidden = {STEP, *(state.input for state in self._states)}
        self.input_names = [name for name in self._session.input_names if name not in hidden]
        self._dtypes = {spec.name: spec.dtype for spec in input_specs(proto) if spec.name in self.input_names}
        after = {NEXT, *(state.output for state in self._states)}
        self.output_names = [name for name in self._session.output_names if name not in after]
        self.reset()

    def reset(self) -> None:
        """Back to the state before step 0."""
        self.t = 0
        self._rows: tuple[tuple[int, ...], ...] = ()
        self._held: dict[str, Any] = {state.input: state.start for state in self._states}

    def step(self, inputs: Inputs) -> dict[str, np.ndarray]:
        """One step; returns the network's outputs as they would be if the run ended here.

        Args:
            inputs: one array, or one per input by name; the same at every step, or a new frame each time. The number of
                samples stays what it was since the last `reset`.

        Raises:
            DataError: inputs are missing, or have another number of samples than before.
            ModelError: the run failed.
        """
        feeds = self._feeds(inputs)
        rows = tuple(value.shape[:1] for value in feeds.values())
        if self.t and rows != self._rows:
            before, now = (" and ".join({str(n): n for row in both for n in row}) for both in (self._rows, rows))
            raise DataError(f"the state is that of {before} samples, and now there are {now or 'none'}: call reset()")
        self._rows = rows
        names = [state.output for state in self._states]
        found, kept = self._session.run_bound(
            {**feeds, STEP: np.array(self.t, np.int64), **self._held}, self.output_names, names
        )
        self._held = {state.input: kept[state.output] for state in self._states}
        self.t += 1
        return found

    def run(self, inputs: Inputs, steps: int | None = None) -> dict[str, np.ndarray]:
        """Some steps on the same inputs from the state as it is (T if not said); returns the outputs after the last.

        Raises:
            ConfigError: fewer than one step.
        """
        if steps is not None:
            check_positive("steps", steps)
        found: dict[str, np.ndarray] = {}
        for _ in range(self.steps if steps is None else steps):
            found = self.step(inputs)
        return found

    def decide(self, inputs: Inputs, margin: float, output: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """From the start until every sample is clear, or T steps (`ftbc_onnx.early_exit`).

        Args:
            inputs: as in `step`.
            margin: M; what a sample's best score must lead by.
            output: a row of scores per sample; None: the first output.

        Returns:
            The decision of every sample when it became clear, and the steps that it took, [B] both.

        Raises:
            ConfigError: the output is unknown or no row of scores, or the margin is no number from 0.
        """
        check_margin(margin, "margin")
        name = output or self.output_names[0]
        if name not in self.output_names:
            raise ConfigError(f"there is no output '{name}': the network has {', '.join(self.output_names)}")
        self.reset()
        decided, used = np.zeros(0, np.int64), np.zeros(0, np.int64)
        for t in range(self.steps):
            scores = self.step(inputs)[name]
            if scores.ndim != 2 or scores.shape[1] < 2:
                raise ConfigError(f"output '{name}' of shape {scores.shape} is no row of scores per sample")
            if not t:
                decided, used = scores.argmax(1), np.zeros(len(scores), np.int64)
            open_still = used == 0
            clear = is_clear(scores, self._window.count(t), margin)
            decided = np.where(open_still, scores.argmax(1), decided)
            used = np.where(open_still & (clear | (t + 1 == self.steps)), t + 1, used)
            if np.all(used):
                break
        return decided, used

    def _feeds(self, inputs: Inputs) -> dict[str, np.ndarray]:
        if not isinstance(inputs, Mapping):
            if len(self.input_names) != 1:
                raise DataError(f"the network has the inputs {', '.join(self.input_names)}: give one array for each")
            inputs = {self.input_names[0]: np.asarray(inputs)}
        missing = [name for name in self.input_names if name not in inputs]
        if missing:
            raise DataError(f"input '{missing[0]}' is missing: the network has {', '.join(self.input_names)}")
        return {name: self._cast(name, inputs[name]) for name in self.input_names}

    def _cast(self, name: str, value: Any) -> np.ndarray:
        """An input in the type that the network takes."""
        x, dtype = np.asarray(value), self._dtypes[name]
        if x.dtype == dtype:
            return x
        if x.dtype.kind not in "biuf" or x.ndim == 0 or (x.dtype.kind == "f" and dtype.kind != "f"):
            raise DataError(f"input '{name}' is {x.dtype} of shape {x.shape}: the network takes {dtype}, [N, ...]")
        found, bad = images.cast(x, dtype)
        if bad.any():
            raise DataError(f"input '{name}' has values that {dtype} does not hold, in sample {int(bad.argmax())}")
        return found
