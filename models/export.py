"""Write a trained network as ONNX, by either exporter of PyTorch, and compare the two.

python models/export.py resnet20.pt -o resnet20.onnx [--exporter torchscript]
"""

from __future__ import annotations

import warnings
from pathlib import Path

import click
import numpy as np
import onnx
import onnxruntime
import torch
from architectures import image_side
from stored import check_target, load_trained, written_whole
from torch import nn
from trainer import Settings

EXPORTERS = ("dynamo", "torchscript")
OPSET = {"dynamo": 18, "torchscript": 17}


@torch.no_grad()
def export(net: nn.Module, example: torch.Tensor, path: Path, exporter: str) -> None:
    """Write `net` as one ONNX file with a free batch axis N, from ``image`` to ``logits``.

    Args:
        net: in evaluation mode.
        example: an input [n, ...] with n > 1.
        path: where to; replaced in one go.
        exporter: one of `EXPORTERS`.

    Raises:
        click.ClickException: the file cannot be written.
    """
    names = {"input_names": ["image"], "output_names": ["logits"], "opset_version": OPSET[exporter]}
    with written_whole(path) as half, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the TorchScript exporter says that it is deprecated
        if exporter == "dynamo":
            free = {"image": {0: torch.export.Dim("N")}}
            program = torch.onnx.export(net, (example,), **names, dynamo=True, dynamic_shapes=free, verbose=False)
            model = program.model_proto
        else:
            torch.onnx.export(
                net,
                (example,),
                half,
                **names,
                dynamo=False,
                dynamic_axes={"image": {0: "N"}, "logits": {0: "N"}},
                # TrainingMode.EVAL would fold each BatchNorm into its convolution; the file shall keep them.
                training=torch.onnx.TrainingMode.PRESERVE,
            )
            model = onnx.load(half)
        strip(model)
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, half)


def strip(model: onnx.ModelProto) -> None:
    """Remove the notes of the exporter (stack traces among them), which depend on where it runs."""
    graph = model.graph
    for message in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        message.ClearField("doc_string")
        message.ClearField("metadata_props")


@torch.no_grad()
def difference(net: nn.Module, path: Path, images: torch.Tensor) -> tuple[float, float]:
    """Largest difference between the outputs of PyTorch and of the file, and the share of images with the same class.

    With QCFS a sum that rounds the other way moves an activation by a whole level, so that a few images may differ
    visibly.
    """
    expected = net(images).numpy()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(["logits"], {"image": images.numpy()})[0]
    return float(np.abs(found - expected).max()), float(np.mean(found.argmax(1) == expected.argmax(1)))


def trained(checkpoint: Path) -> tuple[nn.Module, Settings]:
    """The network of a checkpoint of `train.py`, in evaluation mode on the CPU, and how it was trained.

    Raises:
        click.UsageError: the file is none, or its weights are not those of its settings.
    """
    try:
        state = load_trained(checkpoint)
        settings = Settings(**state["settings"])
        net = settings.make()
        net.load_state_dict(state["weights"])
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    except (TypeError, RuntimeError):  # of Settings and load_state_dict
        raise click.UsageError(f"'{checkpoint}' has settings and weights that do not fit: train it again") from None
    return net.eval(), settings


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), required=True)
@click.option("--exporter", type=click.Choice(EXPORTERS), default="dynamo", show_default=True)
def main(checkpoint: Path, output: Path, exporter: str) -> None:
    """Write the network of CHECKPOINT, and compare it with PyTorch on random images."""
    check_target(output)
    net, settings = trained(checkpoint)
    side = image_side(settings.classes)
    images = torch.randn(32, 3, side, side, generator=torch.Generator().manual_seed(0))
    export(net, images[:2], output, exporter)
    largest, same = difference(net, output, images)
    click.echo(
        f"{output}: {output.stat().st_size} bytes; on 32 random images the largest difference to PyTorch is "
        f"{largest:.2g}, {100 * same:.0f} % have the same class"
    )


if __name__ == "__main__":
    main()
