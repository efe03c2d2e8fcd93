"""Devices and sessions: what was asked for is what runs, or the reason why not."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os

import numpy as np
import onnxruntime as ort
import pytest
from helpers import numbers, parse
from networks import CALIBRATION, QCFS, RELU, TEST

from ftbc_onnx import convert, runtime
from ftbc_onnx.errors import ConfigError, DeviceError, ModelError
from ftbc_onnx.evaluate import evaluate_file
from ftbc_onnx.graph.files import probe_model
from ftbc_onnx.runtime import (
    CPU,
    Device,
    Session,
    _first_line,
    choose_device,
    conflicting_packages,
    package_version,
    runtime_version,
)


def why_no_cuda() -> str | None:
    """The reason why CUDA cannot be used here, or None if it can."""
    try:
        choose_device("cuda")
    except DeviceError as error:
        return str(error)
    return None


WHY_NO_CUDA = why_no_cuda()
needs_cuda = pytest.mark.skipif(WHY_NO_CUDA is not None, reason=f"needs a GPU: {WHY_NO_CUDA}")
needs_no_cuda = pytest.mark.skipif(WHY_NO_CUDA is None, reason="CUDA works on this machine")


class TestChoice:
    def test_cpu(self) -> None:
        assert choose_device("cpu") == CPU == Device("cpu", ("CPUExecutionProvider",))
        assert (choose_device("cpu").cores, choose_device("cpu", 3).cores) == (len(os.sched_getaffinity(0)), 3)
        assert CPU.expected == "CPUExecutionProvider"

    @needs_no_cuda
    def test_auto_without_cuda_is_the_cpu(self) -> None:
        assert choose_device("auto") == choose_device() == CPU

    @needs_no_cuda
    @pytest.mark.parametrize("wanted", ["cuda", "cuda:0", "cuda:3"])
    def test_cuda_that_does_not_start_is_refused_with_the_reason(self, wanted: str) -> None:
        with pytest.raises(DeviceError) as caught:
            choose_device(wanted)
        message = str(caught.value)
        assert message.startswith(f"--device {wanted}: ")
        assert message.endswith("; use --device cpu, or install the extra 'cuda' on a machine with a GPU")
        assert "\n" not in message
        assert len(message) > len(f"--device {wanted}: ; use --device cpu, or install the extra 'cuda'") + 60

    @pytest.mark.parametrize(
        "wanted", ["gpu", "", "cpu:0", "auto:1", "cuda:x", "cuda:-1", "cuda:1:2", "CPU", "tensorrt"]
    )
    def test_unknown_word(self, wanted: str) -> None:
        with pytest.raises(DeviceError, match=f"^unknown device '{wanted}': use auto, cpu, cuda or cuda:N$"):
            choose_device(wanted)

    def test_without_the_provider(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
        assert choose_device("auto") == CPU
        with pytest.raises(DeviceError, match="this onnxruntime has no CUDA provider"):
            choose_device("cuda")

    def test_without_the_driver(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The provider is listed on machines without a GPU: that is no proof."""

        def missing(name: str) -> None:
            raise OSError(f"{name}: cannot open shared object file")

        monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
        monkeypatch.setattr(runtime.ctypes, "CDLL", missing)
        assert choose_device("auto") == CPU
        with pytest.raises(DeviceError, match="there is no NVIDIA driver on this machine"):
            choose_device("cuda")

    @pytest.mark.parametrize("preloads", [True, False])
    def test_a_session_that_falls_back_in_silence_is_found_out(
        self, monkeypatch: pytest.MonkeyPatch, preloads: bool
    ) -> None:
        """Driver and provider are there, the libraries are not: the session runs on the CPU without an error."""
        monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
        monkeypatch.setattr(runtime.ctypes, "CDLL", lambda _: None)
        if preloads:
            monkeypatch.setattr(ort, "preload_dlls", lambda: None, raising=False)
        else:  # onnxruntime 1.20
            monkeypatch.delattr(ort, "preload_dlls", raising=False)
        create = ort.InferenceSession
        monkeypatch.setattr(
            ort, "InferenceSession", lambda model, options, providers: create(model, options, providers=providers[1:])
        )
        with pytest.raises(DeviceError, match="CUDAExecutionProvider did not start: the session runs on CPUExecution"):
            choose_device("cuda:1")
        assert choose_device("auto") == CPU

    def test_a_device_that_starts_is_taken(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(runtime, "_why_no_cuda", lambda _: None)
        assert choose_device("auto").name == choose_device("cuda").name == "cuda:0"
        device = choose_device("cuda:2")
        assert device.name == "cuda:2"
        assert device.expected == "CUDAExecutionProvider"
        assert (device.cores, choose_device("cuda", 3).cores) == (0, 0)
        (_, options), fallback = device.providers
        assert options == {"device_id": "2", "use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"}
        assert fallback == "CPUExecutionProvider"

    def test_opening_on_a_gpu_writes_no_lines(self, capfd: pytest.CaptureFixture[str]) -> None:
        """From 1.26 on onnxruntime warns at every session that CUDA is no plugin; without a GPU it has more to say."""
        device = Device("cuda:0", (("CUDAExecutionProvider", {"device_id": "0"}), "CPUExecutionProvider"))
        with contextlib.suppress(DeviceError):
            Session(probe_model(), device)
        assert capfd.readouterr() == ("", "")


class TestConflicts:
    @staticmethod
    def install(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
        def version(name: str) -> str:
            if name.replace("-", "_") not in versions:
                raise importlib.metadata.PackageNotFoundError(name)
            return versions[name.replace("-", "_")]

        monkeypatch.setattr(importlib.metadata, "version", version)

    @pytest.mark.parametrize("name", ["onnxruntime", "onnxruntime_gpu", "onnxruntime_openvino"])
    def test_one_package_is_none(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.install(monkeypatch, **{name: "1.31.0"})
        assert conflicting_packages() is None

    def test_two_are_named_with_what_to_do(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.install(monkeypatch, onnxruntime="1.32.0", onnxruntime_gpu="1.31.1")
        warning = conflicting_packages()
        assert warning.startswith("onnxruntime 1.32.0 and onnxruntime-gpu 1.31.1 are both installed")
        assert "uninstall all of them, then install one" in warning
        assert "\n" not in warning


class TestSession:
    def test_runs(self) -> None:
        session = Session(probe_model())
        assert session.provider == "CPUExecutionProvider"
        assert session.output_names == ["y"]
        np.testing.assert_array_equal(session.run({"x": np.ones(1, np.float32)})["y"], [2])

    def test_gives_the_outputs_asked_for(self) -> None:
        session = Session(parse("g (float[N] x) => (float[N] a, float[N] b) { a = Neg(x)  b = Abs(x) }"))
        found = session.run({"x": numbers(3)}, ["b"])
        assert list(found) == ["b"]

    def test_optimisations_can_be_switched_off(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[ort.GraphOptimizationLevel] = []
        create = ort.InferenceSession

        def watch(model: bytes, options: ort.SessionOptions, providers: list[object]) -> ort.InferenceSession:
            seen.append(options.graph_optimization_level)
            return create(model, options, providers=providers)

        monkeypatch.setattr(ort, "InferenceSession", watch)
        Session(probe_model())
        Session(probe_model(), optimise=False)
        level = ort.GraphOptimizationLevel
        assert seen == [level.ORT_ENABLE_ALL, level.ORT_DISABLE_ALL]

    def test_a_model_that_is_not_taken_is_one_line(self) -> None:
        model = probe_model()
        model.graph.node[0].op_type = "Adder"
        with pytest.raises(ModelError, match=f"onnxruntime {runtime_version()} does not take the model: .*Adder"):
            Session(model)

    def test_an_opset_that_is_too_new_is_named(self) -> None:
        model = probe_model()
        model.opset_import[0].version = 999
        with pytest.raises(ModelError, match=r"it takes opset \d\d at most: export the model with an older opset"):
            Session(model)

    def test_places_in_the_source_code_of_onnxruntime_are_left_out(self) -> None:
        said = (
            "FAIL : /onnxruntime_src/onnxruntime/core/graph/model.cc:256 onnxruntime::Model::Model(f(int)&&) It is\nbad"
        )
        assert _first_line(RuntimeError(said)) == "FAIL : It is bad"
        windows = said.replace(
            "/onnxruntime_src/onnxruntime/core/graph/", "D:\\a\\_work\\1\\s\\onnxruntime\\core\\graph\\"
        )
        assert _first_line(RuntimeError(windows)) == "FAIL : It is bad"

    def test_a_run_that_fails_is_one_line_with_the_batch(self) -> None:
        text = "g (float[N,4] x) => (float[M,3] y) <int64[2] s = {2,3}> { y = Reshape(x, s) }"
        with pytest.raises(ModelError) as caught:
            Session(parse(text)).run({"x": numbers(5, 4)})
        message = str(caught.value)
        assert "could not run the model on a batch of 5" in message
        assert "dynamic batch" in message
        assert "\n" not in message
        assert len(message) < 500

    def test_too_little_memory_for_a_run_is_told_from_a_model_that_fails(self) -> None:
        model = parse("g (float[1] x) => (float[a, b, c] y) <int64[3] s = {1048576, 1048576, 64}> { y = Expand(x, s) }")
        with pytest.raises(ConfigError) as info:
            Session(model, optimise=False).run({"x": numbers(1)})
        assert str(info.value) == (
            "out of memory on cpu (for a buffer of 281,474,977 MB) when running a batch of 1: "
            "it takes fewer samples at a time (--batch-size)"
        )

    @pytest.mark.parametrize(
        "text",
        [
            *("std::bad_alloc", "CUDA failure 2: out of memory ; GPU=0", "Failed to allocate memory"),
            "bad allocation",
            "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0",
        ],
    )
    def test_every_runtime_s_word_for_it(self, text: str) -> None:
        gpu = Device("cuda:0", ("CUDAExecutionProvider",))
        ran, opened = (runtime._no_room(RuntimeError(text), gpu, what) for what in ("running a step", "opening it"))
        assert str(ran).startswith("out of memory on cuda:0 when running a step: it takes fewer samples at a time")
        assert str(ran).endswith("(--batch-size) or --device cpu")
        assert str(opened) == "out of memory on cuda:0 when opening it: it takes --device cpu"

    def test_an_active_provider_other_than_the_device_is_an_error(self) -> None:
        wanted = Device("none", (("CUDAExecutionProvider", {"device_id": "99"}), "CPUExecutionProvider"))
        if WHY_NO_CUDA is None:
            pytest.skip("CUDA works on this machine")
        with pytest.raises((DeviceError, ModelError)):
            Session(probe_model(), wanted)


@needs_cuda
@pytest.mark.parametrize("path", [RELU, QCFS], ids=lambda path: path.stem)
def test_conversion_on_a_gpu(path, tmp_path) -> None:
    """Within two points of the CPU at every step: across providers a few spikes in a million flip."""
    there = convert(path, CALIBRATION, eval_data=TEST, steps=8, device="cuda")
    here = convert(path, CALIBRATION, eval_data=TEST, steps=8, device="cpu")
    assert there.report["device"] == "cuda:0"
    assert there.report["provider"] == "CUDAExecutionProvider"
    assert there.report["verification"]["bitwise"]
    np.testing.assert_allclose(there.evaluation.accuracy, here.evaluation.accuracy, atol=2)
    assert there.evaluation.ann_accuracy == here.evaluation.ann_accuracy
    for name, bias in here.plan.biases.items():
        assert np.mean(np.abs(there.plan.biases[name] - bias)) < 0.02 * here.plan.thresholds[name].mean()
    again, device = evaluate_file(there.save(tmp_path / "snn.onnx"), TEST, device="auto")
    assert device == "cuda:0"
    np.testing.assert_allclose(again.accuracy, there.evaluation.accuracy, atol=1)


def test_nodes_run_as_soon_as_they_can_and_no_run_is_laid_out_ahead() -> None:
    options = Session(probe_model())._session.get_session_options()
    assert options.execution_order == ort.ExecutionOrder.PRIORITY_BASED
    assert not options.enable_mem_pattern


def test_a_package_that_was_never_installed_has_an_unknown_version(monkeypatch: pytest.MonkeyPatch) -> None:
    assert package_version() == importlib.metadata.version("ftbc-onnx")

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert package_version() == "unknown"
