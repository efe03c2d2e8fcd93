"""Write networks of timm, torchvision, Keras and Paddle as ONNX files, with random weights, for `libraries.py`.

    python tools/export_libraries.py FOLDER timm:resnet18 torchvision:fcn_resnet50 keras:ResNet50 paddle:vgg11
        [--dynamo] [--size 64]

Names are those of the library, which has to be installed; nothing else of this project is needed. BatchNorms have seen
one batch of random numbers. What cannot be exported is named, and the others are written.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import click


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.argument("names", nargs=-1, required=True)
@click.option("--dynamo", is_flag=True, help="PyTorch's newer exporter.")
@click.option("--size", default=64, show_default=True, help="Height and width of the images.")
def main(folder: Path, names: tuple[str, ...], *, dynamo: bool, size: int) -> None:
    """Write networks as ONNX files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        library, _, network = name.partition(":")
        exporter = library if library in _OWN else "dynamo" if dynamo else "torchscript"
        target = folder / f"{library}_{network}_{exporter}.onnx"
        try:
            if library in _OWN:
                _OWN[library](network, size, target)
            else:
                _export_torch(library, network, size, target, dynamo=dynamo)
            click.echo(f"{target.name}: {target.stat().st_size / 1e6:.1f} MB")
        except Exception as error:  # whatever an exporter raises: the others may do
            click.echo(f"{name}: {' '.join(str(error).split())[:200]}", err=True)


def _export_torch(library: str, network: str, size: int, target: Path, *, dynamo: bool) -> None:
    torch = importlib.import_module("torch")
    torch.manual_seed(0)
    if library == "timm":
        net = _timm(network, size)
    else:
        models = importlib.import_module("torchvision.models")
        parts = ["weights"] + ["weights_backbone"] * (network in models.list_models(models.segmentation))
        net = models.get_model(network, **dict.fromkeys(parts))
    net = _only_output(torch, net)
    with torch.no_grad():
        net.train()(torch.randn(4, 3, size, size))
    image = torch.randn(2, 3, size, size)
    names = {"input_names": ["image"], "output_names": ["output"]}
    if dynamo:
        shapes = ({0: torch.export.Dim("batch")},)
        torch.onnx.export(
            net.eval(), (image,), target, dynamo=True, dynamic_shapes=shapes, external_data=False, **names
        )
    else:
        axes = {"image": {0: "batch"}, "output": {0: "batch"}}
        torch.onnx.export(net.eval(), (image,), target, dynamo=False, dynamic_axes=axes, **names)


def _timm(network: str, size: int) -> Any:
    """Some networks are made for a size of image, others take any and do not want to be told."""
    timm = importlib.import_module("timm")
    try:
        return timm.create_model(network, pretrained=False, img_size=size)
    except TypeError:
        return timm.create_model(network, pretrained=False)


def _only_output(torch: Any, net: Any) -> Any:
    """Networks for segmentation give a dictionary, some in training more than one output."""

    class Only(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, image: Any) -> Any:
            made = self.net(image)
            return made["out"] if isinstance(made, dict) else made[0] if isinstance(made, tuple) else made

    return Only()


def _export_paddle(network: str, size: int, target: Path) -> None:
    paddle = importlib.import_module("paddle")
    paddle.seed(0)
    net = getattr(paddle.vision.models, network)()
    net.train()
    net(paddle.randn([4, 3, size, size]))
    net.eval()
    spec = paddle.static.InputSpec([None, 3, size, size], "float32", "image")
    paddle.onnx.export(net, str(target.with_suffix("")), input_spec=[spec], opset_version=17)


def _export_keras(network: str, size: int, target: Path) -> None:
    os.environ.setdefault("KERAS_BACKEND", "torch")
    keras = importlib.import_module("keras")
    keras.utils.set_random_seed(0)
    net = getattr(keras.applications, network)(input_shape=(size, size, 3), weights=None)
    net(keras.random.normal((4, size, size, 3)), training=True)
    net.export(str(target), format="onnx", verbose=False)


_OWN = {"keras": _export_keras, "paddle": _export_paddle}
"""Libraries that export on their own."""


if __name__ == "__main__":
    main()
