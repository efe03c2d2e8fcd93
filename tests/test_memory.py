"""Memory: conversion and evaluation read their data batch by batch, however many there are."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import numbers, parse

from ftbc_onnx import shards
from ftbc_onnx.data import InputSpec, open_data

FEW, MANY = 1000, 10000
SLACK = 48  # MB; all samples are 123 MB as they are stored, 492 MB as they are fed

SCRIPT = """
import json, sys
from pathlib import Path
from ftbc_onnx import Preprocessing, convert
from ftbc_onnx.evaluate import evaluate_file

model, data, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
result = convert(
    model, data, eval_data=data, preprocessing=Preprocessing(scale=1 / 255), steps=2, neuron="if", threshold="max",
    calib_samples=count, batch_size=100, device="cpu", threads=1,
)
again, _ = evaluate_file(result.save(Path(data).with_suffix(".onnx")), data, ann=model, device="cpu", threads=1)
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([result.report["samples"], again.samples, peak / 1024]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is read from /proc")
def test_the_peak_does_not_grow_with_the_samples(tmp_path: Path) -> None:
    text = """g (float[N,3,64,64] x) => (float[N,3] y) {
        c = Conv <kernel_shape = [8, 8], strides = [8, 8]> (x, w)  r = Relu(c)  m = GlobalAveragePool(r)
        f = Flatten(m)  y = Gemm(f, v) }"""
    onnx.save(parse(text, w=numbers(4, 3, 8, 8, scale=0.1), v=numbers(4, 3)), tmp_path / "net.onnx")
    peaks = {}
    for count in (FEW, MANY):
        path = tmp_path / f"{count}.npy"
        stored = np.lib.format.open_memmap(path, "w+", np.uint8, (count, 3, 64, 64))
        for start in range(0, count, FEW):
            stored[start : start + FEW] = np.random.default_rng(start).integers(0, 256, (FEW, 3, 64, 64), np.uint8)
        del stored
        command = [sys.executable, "-c", SCRIPT, str(tmp_path / "net.onnx"), str(path), str(count)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
        used, evaluated, peaks[count] = json.loads(done.stdout)
        assert used == evaluated == count
    assert peaks[MANY] < 1000
    assert peaks[MANY] < peaks[FEW] + SLACK


class TestReaders:
    """What comes once is kept: the first part in memory, the rest in a temporary file."""

    INPUTS = (InputSpec("a", np.dtype(np.float32), ("N", 5)), InputSpec("b", np.dtype(np.int64), ("N", 2)))

    @pytest.mark.parametrize("kept", [0, 200, 1 << 28])
    def test_all_of_it_is_read_again(self, monkeypatch: pytest.MonkeyPatch, kept: int) -> None:
        monkeypatch.setattr(shards, "KEPT", kept)
        a, b, y = numbers(12, 5), np.arange(24).reshape(12, 2), np.arange(12)
        parts = [slice(0, 3), slice(3, 4), slice(4, 9), slice(9, 12)]
        source = open_data(({"a": a[p], "b": b[p], "y": y[p]} for p in parts), self.INPUTS)
        order = [11, 0, 5, 5, 3, 1]
        for chosen in (np.arange(12), np.array(order)):
            (batch,) = source.subset(chosen).batches(12)
            np.testing.assert_array_equal(batch.feeds["a"], a[chosen])
            np.testing.assert_array_equal(batch.feeds["b"], b[chosen])
            np.testing.assert_array_equal(batch.labels, chosen)
        assert source.digest() == open_data({"a": a, "b": b, "y": y}, self.INPUTS).digest()

    def test_little_stays_in_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import tracemalloc

        monkeypatch.setattr(shards, "KEPT", 1 << 20)
        inputs = [InputSpec("x", np.dtype(np.float32), ("N", 1 << 16))]
        tracemalloc.start()
        source = open_data((np.full((4, 1 << 16), i, np.float32) for i in range(40)), inputs)  # 40 MB
        means = [float(batch.feeds["x"].mean()) for batch in source.batches(4)]
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert means == list(range(40))
        assert peak < 12 << 20

    def test_onnxruntimes_own_reader(self) -> None:
        from onnxruntime.quantization import CalibrationDataReader

        class Reader(CalibrationDataReader):
            def __init__(self) -> None:
                self.items = iter([{"a": numbers(2, 5, seed=i), "b": np.full((2, 2), i)} for i in range(5)])

            def get_next(self) -> dict[str, np.ndarray]:
                return next(self.items, None)

        source = open_data(Reader(), self.INPUTS, limit=7)
        (batch,) = source.batches(10)
        np.testing.assert_array_equal(batch.feeds["b"][:, 0], [0, 0, 1, 1, 2, 2, 3])
