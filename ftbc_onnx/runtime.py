"""The only door to onnxruntime: devices, session options, runs.

Calibration, verification and evaluation use the same `SessionOptions`, because spikes amplify rounding: across
optimisation levels a few in a million flip. On CUDA, TF32 is off for the same reason.

Nodes run as soon as they can, and nothing is laid out ahead of a run: a fraction of the memory, and the same numbers
(decision 38).
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import io
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from ftbc_onnx.errors import DeviceError, ModelError, OutOfMemoryError
from ftbc_onnx.graph.files import loadable, probe_model
from ftbc_onnx.per_sample import axis_of_samples

_CPU = "CPUExecutionProvider"
_CUDA = "CUDAExecutionProvider"
_NEWEST = re.compile(r"support for domain ai\.onnx is till opset (\d+)")
_NO_ROOM = re.compile(
    r"Failed to allocate memory(?: for requested buffer of size (\d+))?|bad[_ ]alloc|out of memory|STATUS_ALLOC_FAILED",
    re.IGNORECASE,
)
_PLACE = re.compile(r"(?:/|[A-Z]:\\)\S*onnxruntime[/\\]core[/\\]\S+:\d+ .*?\)(?= [A-Z])")
"""File, line and C++ signature of a function."""
_MAPPED_STAYS = sys.platform == "win32"
"""Whether a file that is mapped cannot be deleted: that of a large model then stays as long as its session."""


@dataclass(frozen=True)
class Device:
    """Where sessions run.

    Attributes:
        name: for reports: ``cpu``, ``cuda:0``.
        providers: onnxruntime's, for it.
        threads: of a session's operators; None: as many as there are cores.
    """

    name: str
    providers: tuple[str | tuple[str, dict[str, str]], ...]
    threads: int | None = None

    @property
    def expected(self) -> str:
        """Provider that must be active in a session of this device."""
        first = self.providers[0]
        return first if isinstance(first, str) else first[0]

    @property
    def on_gpu(self) -> bool:
        """Whether it is a GPU."""
        return self.expected != _CPU

    @property
    def cores(self) -> int:
        """Cores of the processor that a session may use; 0 on a GPU."""
        if self.on_gpu:
            return 0
        allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return self.threads or allowed or 1


CPU = Device("cpu", (_CPU,))

ONE_THREAD = replace(CPU, threads=1)
"""For comparisons to the last bit: with several threads, the Conv of a small batch may add in another order."""


def choose_device(wanted: str = "auto", threads: int | None = None) -> Device:
    """The device for ``auto``, ``cpu``, ``cuda`` or ``cuda:N``, with so many threads.

    ``auto`` takes CUDA if a CUDA session really starts, else the CPU. `get_available_providers` is no proof: it lists
    CUDA on machines without a GPU, and a session that cannot have it runs on the CPU without an error.

    Raises:
        DeviceError: the word is unknown, or ``cuda`` was asked for and does not start.
    """
    kind, _, index = wanted.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (index and (kind != "cuda" or not index.isdigit())):
        raise DeviceError(f"unknown device '{wanted}': use auto, cpu, cuda or cuda:N")
    cpu = replace(CPU, threads=threads)
    if kind == "cpu":
        return cpu
    options = {"device_id": index or "0", "use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"}
    cuda = Device(f"cuda:{index or 0}", ((_CUDA, options), _CPU), threads)
    reason = _why_no_cuda(cuda)
    if reason is None:
        return cuda
    if kind == "cuda":
        raise DeviceError(
            f"--device {wanted}: {reason}; use --device cpu, or install the extra 'cuda' on a machine with a GPU"
        )
    return cpu


def conflicting_packages() -> str | None:
    """A line of warning if several onnxruntime packages are installed over each other, else None."""
    found = []
    for name in ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino"):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    if len(found) < 2:
        return None
    names = " and ".join(found)
    return f"{names} are both installed and overwrite each other's files: uninstall all of them, then install one"


def runtime_version() -> str:
    """Version of onnxruntime."""
    return str(ort.__version__)


def package_version() -> str:
    """Version of this package; ``unknown`` where it is run from a folder and was never installed."""
    try:
        return importlib.metadata.version("ftbc-onnx")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _why_no_cuda(device: Device) -> str | None:
    """The reason why a CUDA session does not start, or None if it does. Quiet where there is no GPU at all."""
    if _CUDA not in ort.get_available_providers():
        return "this onnxruntime has no CUDA provider"
    driver = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        ctypes.CDLL(driver)
    except OSError:
        return f"there is no NVIDIA driver on this machine ({driver} does not load)"
    try:
        with _quiet(), contextlib.redirect_stdout(io.StringIO()):
            if hasattr(ort, "preload_dlls"):  # from 1.21
                ort.preload_dlls()
        session = Session(probe_model(), device)
        with _quiet():
            session.run({"x": np.ones(1, np.float32)})
    except Exception as error:  # a library that is missing is what is being found out
        return str(error)
    return None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what onnxruntime writes past a session: missing libraries, and that CUDA is no plugin (from 1.26).

    Not to be nested. What the severity was cannot be asked for: afterwards it is onnxruntime's default.
    """
    ort.set_default_logger_severity(4)
    try:
        yield
    finally:
        ort.set_default_logger_severity(2)


class Session:
    """An onnxruntime session that runs where it was asked to run."""

    def __init__(self, model: Any, device: Device = CPU, optimise: bool = True) -> None:
        """Open a session.

        Args:
            model: an ONNX model (``onnx.ModelProto``).
            device: where to run.
            optimise: False switches every graph optimisation off, for bitwise comparisons.

        Raises:
            ModelError: onnxruntime does not take the model.
            DeviceError: the device's provider is not active in the session.
            OutOfMemoryError: there is too little memory.
        """
        self._files = contextlib.ExitStack()  # what `__del__` closes
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
        options.enable_mem_pattern = False
        if device.threads is not None:
            options.intra_op_num_threads = device.threads
        level = ort.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_ALL if optimise else level.ORT_DISABLE_ALL
        try:
            with contextlib.ExitStack() as files, _quiet() if device.on_gpu else contextlib.nullcontext():
                source = files.enter_context(loadable(model))
                what = str(source) if isinstance(source, Path) else source
                self._session = ort.InferenceSession(what, options, providers=list(device.providers))
                if isinstance(source, Path) and _MAPPED_STAYS:
                    self._files = files.pop_all()
        except Exception as error:  # onnxruntime raises a family of its own, with no public base
            newest = _NEWEST.search(str(error))
            why = _first_line(error)
            if newest is not None:
                why = f"it takes opset {newest[1]} at most: export the model with an older opset"
            if "NOT_IMPLEMENTED" in why:
                why += " (of these element types, perhaps: export the model in float32)"
            refusal = ModelError(f"onnxruntime {ort.__version__} does not take the model: {why}")
            raise _no_room(error, device, "opening the model") or refusal from error
        active = self._session.get_providers()
        if device.expected not in active:
            raise DeviceError(f"{device.expected} did not start: the session runs on {', '.join(active)}")
        self.provider = active[0]
        self.device = device
        self.input_names: list[str] = [value.name for value in self._session.get_inputs()]
        self.output_names: list[str] = [value.name for value in self._session.get_outputs()]

    def axis_of_samples(self, output: str) -> int:
        """The axis of an output on which the samples of a batch are, by what the model declares."""
        (first, *_), declared = self._session.get_inputs(), self._session.get_outputs()
        shape = next(value.shape for value in declared if value.name == output)
        return axis_of_samples(shape, first.shape[0] if first.shape else None)

    def __del__(self) -> None:
        """Let go of the file of a large model, if it is still there, once nobody has it mapped."""
        self._session = None
        self._files.close()

    def run(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Run once; returns the outputs by name.

        Raises:
            ModelError: the run failed (feeds of a wrong shape, for example).
            OutOfMemoryError: there is too little memory.
        """
        names = list(outputs) if outputs is not None else self.output_names
        try:
            values = self._session.run(names, dict(feeds))
        except Exception as error:
            rows = next((len(value) for value in feeds.values() if value.ndim), 1)
            failure = ModelError(
                f"onnxruntime could not run the model on a batch of {rows} (one that fixes its batch inside, with a "
                f"Reshape for example, has to be exported with a dynamic batch): {_first_line(error)}"
            )
            raise _no_room(error, self.device, f"running a batch of {rows}") or failure from error
        return dict(zip(names, values, strict=True))

    def run_bound(
        self, feeds: Mapping[str, Any], outputs: Sequence[str], kept: Sequence[str]
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Run once with some values staying on the device.

        Args:
            feeds: arrays, or values that were kept.
            outputs: what is returned as arrays.
            kept: what is returned as values on the device, to be fed again.

        Raises:
            ModelError: the run failed.
            OutOfMemoryError: there is too little memory.
        """
        kind, _, number = self.device.name.partition(":")
        binding = self._session.io_binding()
        try:
            for name, value in feeds.items():
                if isinstance(value, np.ndarray):
                    binding.bind_cpu_input(name, value)
                else:
                    binding.bind_ortvalue_input(name, value)
            for name in (*outputs, *kept):
                binding.bind_output(name, kind if name in kept else "cpu", int(number or 0) if name in kept else 0)
            self._session.run_with_iobinding(binding)
        except Exception as error:
            failure = ModelError(f"onnxruntime could not run a step: {_first_line(error)}")
            raise _no_room(error, self.device, "running a step") or failure from error
        values = dict(zip((*outputs, *kept), binding.get_outputs(), strict=True))
        return {name: values[name].numpy() for name in outputs}, {name: values[name] for name in kept}


def _no_room(error: Exception, device: Device, doing: str) -> OutOfMemoryError | None:
    """What to raise if it was memory that onnxruntime lacked."""
    found = _NO_ROOM.search(str(error))
    if found is None:
        return None
    size = "" if found[1] is None else f" (for a buffer of {int(found[1]) / 1e6:,.0f} MB)"
    advice = ["fewer samples at a time (--batch-size)"] if doing.startswith("running") else []
    advice += ["--device cpu"] if device.on_gpu else []
    return OutOfMemoryError(
        f"out of memory on {device.name}{size} when {doing}: it takes {' or '.join(advice) or 'a larger machine'}"
    )


def _first_line(error: Exception) -> str:
    """What onnxruntime says, without the place in its source code, on one line and not too long."""
    text = " ".join(_PLACE.sub("", str(error)).split())
    return text if len(text) <= 300 else text[:297] + "..."
