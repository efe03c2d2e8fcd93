"""Networks that onnxruntime's quantiser has written, to spiking networks."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import ops
from networks import RELU, digits
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from rich.console import Console

from ftbc_onnx import convert
from ftbc_onnx.report import print_conversion


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Calibration images for onnxruntime's quantiser."""

    def __init__(self) -> None:
        images = digits("calibration", 64)[0]
        self._batches: Iterator[dict[str, np.ndarray]] = iter([{"image": images[i : i + 16]} for i in range(0, 64, 16)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)


def quantised(folder: Path, form: QuantFormat, kind: QuantType = QuantType.QUInt8, own: bool = False) -> Path:
    """The digits network in 8 or 16 bits, as onnxruntime writes it; with pairs of its own domain, if asked."""
    logging.disable(logging.WARNING)  # that it might be preprocessed
    options = {"UseQDQContribOps": own}
    try:
        quantize_static(
            *(RELU, folder / "quantised.onnx", Reader()),
            quant_format=form,
            per_channel=True,
            activation_type=kind,
            extra_options=options,
        )
    finally:
        logging.disable(logging.NOTSET)
    return folder / "quantised.onnx"


@pytest.mark.parametrize(
    ("written", "form"),
    [
        (QuantFormat.QDQ, "fused"),
        (QuantFormat.QDQ, "unrolled"),
        (QuantFormat.QDQ, "folded"),
        (QuantFormat.QDQ, "loop"),
        (QuantFormat.QOperator, "fused"),
    ],
)
def test_a_network_in_8_bits(
    written: QuantFormat, form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, labels = digits("test", 60)
    path = quantised(tmp_path, written)
    assert "Relu" not in ops(onnx.load(path))
    result = convert(path, digits("calibration", 64)[0], eval_data=(images, labels), steps=4, form=form)
    assert len(result.plan.sites) == 4
    assert result.report["verification"]["bitwise"]
    assert result.report["evaluation"]["ann_accuracy"] >= 95
    assert result.report["evaluation"]["accuracy"][-1] >= 95
    assert "Linear" not in " ".join(ops(result.model))
    print_conversion(Console(width=200), result.report)
    said = "QuantizeLinear and DequantizeLinear taken out in 9 place(s): spikes round instead\n"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("kind", [QuantType.QUInt8, QuantType.QUInt16])
def test_pairs_of_the_domain_of_onnxruntime(kind: QuantType, tmp_path: Path) -> None:
    path = quantised(tmp_path, QuantFormat.QDQ, kind, own=True)
    assert "com.microsoft" in {node.domain for node in onnx.load(path).graph.node}
    result = convert(path, digits("calibration", 64)[0], steps=2, neuron="if", strict=True)
    assert [site.op_type for site in result.plan.sites] == ["Clip"] * 4
    assert {node.domain for node in result.model.graph.node} == {""}
