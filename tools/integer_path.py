"""What 8-bit arithmetic would bring: a fused ResNet-20 with its 3 x 3 layers written in integers, against itself.

    python tools/integer_path.py --data FOLDER [--steps 8]

Spikes of integrate-and-fire neurons in the fused form are 0 or 1, and so exact in 8 bits. Weights are rounded to int8
per output channel, W = scale * W8. Variants:

* ``float``: the file as it is;
* ``weights``: float arithmetic on the rounded weights;
* ``ConvInteger``: uint8 spikes, int8 weights, int32 sums, which become float for the membrane;
* ``QLinearConv``: the same with currents rounded to 8 bits, within +-`RANGE` thresholds.

Run times on a batch of 32, accuracy on 1,000 test images. FOLDER is described in `real_data.py`; nothing else should
run.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper
from real_data import cifar, markdown

from ftbc_onnx import convert
from ftbc_onnx.runtime import Session

VARIANTS = ("float", "weights", "ConvInteger", "QLinearConv")
RANGE = 6.0


def folded(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """The model with everything computed that depends on constants only."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folder / "folded.onnx")
    ort.InferenceSession(model.SerializeToString(), options)
    return onnx.load(folder / "folded.onnx")


class Integers:
    """Rewrites the layers of a folded model that read spikes."""

    def __init__(self, model: onnx.ModelProto, variant: str) -> None:
        self.model, self.variant = model, variant
        self.values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        self.made = {name: node for node in model.graph.node for name in node.output}
        self.new: dict[str, onnx.TensorProto] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.layers = 0

    def rewritten(self) -> onnx.ModelProto:
        """The model in integers."""
        for node in self.model.graph.node:
            if self.variant != "float" and self._reads_spikes(node):
                self.layers += 1
                self._layer(node)
            else:
                self.nodes.append(node)
        result = onnx.ModelProto()
        result.CopyFrom(self.model)
        del result.graph.node[:], result.graph.value_info[:]
        result.graph.node.extend(self.nodes)
        result.graph.initializer.extend(self.new.values())
        return result

    def _reads_spikes(self, node: onnx.NodeProto) -> bool:
        if node.op_type != "Conv" or node.input[0] not in self.made:
            return False
        return self.made[node.input[0]].op_type == "HardSigmoid" and self.values[node.input[1]].shape[2:] == (3, 3)

    def _layer(self, node: onnx.NodeProto) -> None:
        x, w, out = node.input[0], node.input[1], node.output[0]
        weights = self.values[w]
        scale = np.maximum(np.abs(weights).max(axis=(1, 2, 3)), 1e-12) / np.float32(127)
        rounded = np.round(weights / scale[:, None, None, None])
        bias = self.values[node.input[2]]
        if self.variant == "weights":
            value = (rounded * scale[:, None, None, None]).astype(np.float32)
            self._add("Conv", [x, self._constant(f"{w}/rounded", value), node.input[2]], out, node)
            return
        if f"{x}/u8" not in self.made:
            self._add("Cast", [x], f"{x}/u8", to=onnx.TensorProto.UINT8)
        w8 = self._constant(f"{w}/i8", rounded.astype(np.int8))
        if self.variant == "ConvInteger":
            self._add("ConvInteger", [f"{x}/u8", w8], f"{out}/i32", node)
            self._add("Cast", [f"{out}/i32"], f"{out}/f32", to=onnx.TensorProto.FLOAT)
            factor = self._constant(f"{w}/scale", scale.astype(np.float32)[:, None, None])
            self._add("Mul", [f"{out}/f32", factor], f"{out}/scaled")
            self._add("Add", [f"{out}/scaled", self._constant(f"{out}/bias", bias[:, None, None])], out)
            return
        step, middle = self._constant("step", np.float32(RANGE / 127)), self._constant("middle", np.uint8(128))
        inputs = [f"{x}/u8", self._constant("one", np.float32(1)), self._constant("none", np.uint8(0)), w8]
        inputs += [self._constant(f"{w}/scales", scale.astype(np.float32))]
        inputs += [self._constant(f"none{len(scale)}", np.zeros(len(scale), np.int8)), step, middle]
        inputs += [self._constant(f"{out}/bias", np.round(bias / scale).astype(np.int32))]
        self._add("QLinearConv", inputs, f"{out}/u8", node)
        self._add("DequantizeLinear", [f"{out}/u8", step, middle], out)

    def _constant(self, name: str, value: Any) -> str:
        self.new.setdefault(name, numpy_helper.from_array(np.asarray(value), name))
        return name

    def _add(self, op_type: str, inputs: list[str], out: str, like: onnx.NodeProto | None = None, **attrs: Any) -> None:
        made = helper.make_node(op_type, inputs, [out], **attrs)
        made.attribute.extend(like.attribute if like is not None else ())
        self.made[out] = made
        self.nodes.append(made)


@click.command()
@click.option(
    "--data", type=click.Path(path_type=Path, exists=True), required=True, help="Folder of images and networks."
)
@click.option("--steps", type=int, default=8, show_default=True, help="T.")
def main(*, data: Path, steps: int) -> None:
    """Convert, rewrite, time and judge; print a table."""
    images, labels = cifar(data, "test", 1000)
    network = data / "models" / "cifar10_resnet20_torchscript.onnx"
    result = convert(network, cifar(data, "train", 256)[0], steps=steps, neuron="if", form="fused", verify=False)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        plain = folded(result.model, Path(folder))
        for variant in VARIANTS:
            rewriting = Integers(plain, variant)
            session = Session(rewriting.rewritten())
            (name,) = session.input_names
            times = []
            for turn in range(11):
                start = time.perf_counter()
                session.run({name: images[:32]})
                times += [time.perf_counter() - start] if turn else []
            outputs = [session.run({name: images[i : i + 100]})[session.output_names[0]] for i in range(0, 1000, 100)]
            right = np.concatenate(outputs).argmax(-1) == labels
            rows.append(
                {
                    "variant": variant,
                    "layers in it": rewriting.layers,
                    "run, ms (median of 10)": statistics.median(times) * 1e3,
                    "accuracy, %": f"{right.mean() * 100:.1f}",
                }
            )
    base = rows[0]["run, ms (median of 10)"]
    click.echo(markdown([{**row, "over float": row["run, ms (median of 10)"] / base} for row in rows]))


if __name__ == "__main__":
    main()
