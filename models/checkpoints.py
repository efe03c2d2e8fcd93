"""Take published PyTorch checkpoints of QCFS networks, and write them as ONNX.

    python models/checkpoints.py vgg16_L8.pth --network vgg16 --levels 8 -o vgg16.onnx

The published code for QCFS (Bu et al., ICLR 2022) and what was made of it saves state dicts under names of its own:
``layer1.0.weight``, ``conv2_x.0.residual_function.0.weight``, thresholds as ``...thresh`` or ``...up`` of shape [1],
sometimes behind ``module.`` or in an entry ``state_dict``, beside options of argparse and numbers of NumPy. Names
differ from copy to copy, the order of the layers does not: layers are matched in order, by what they are and by their
shapes. L is in no checkpoint and has to be given.

In files made of torchvision's ResNets both activations of a block share one threshold; each of ours takes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import stored
import torch
from activations import activation
from export import EXPORTERS, difference, export
from resnet import ResNet
from torch import Tensor, nn
from vgg import VGG16

NETWORKS = ("vgg16", "resnet18", "resnet20", "resnet34")
THRESHOLDS = ("thresh", "up", "threshold")
"""Last parts of the names of thresholds."""


def load(path: Path, network: str, levels: int) -> nn.Module:
    """The network of a checkpoint, in evaluation mode.

    Args:
        path: what ``torch.save`` wrote: a state dict, or a dict that holds one.
        network: one of `NETWORKS`.
        levels: L, which it was trained with.

    Raises:
        ValueError: the file holds no state dict, that of another network, or weights that are no numbers.
    """
    found = stored.load(path)
    if stored.is_trained(found):
        raise ValueError(f"'{path}' is a checkpoint of models/train.py, which knows its L: take models/export.py")
    theirs = state_dict(found)
    stored.check_finite(path, theirs)
    weights = [tensor for tensor in theirs.values() if tensor.ndim >= 2]
    if not weights:
        raise ValueError(f"'{path}' holds no weights")
    made, classes = activation("qcfs", levels), len(weights[-1])
    if network == "vgg16":
        if len(weights) != 16:
            raise ValueError(f"'{path}' has {len(weights)} layers with weights; a VGG-16 has 16")
        side = 32 * round((weights[13].shape[1] / 512) ** 0.5)
        net: nn.Module = VGG16(made, classes, hidden=len(weights[13]), side=side)
    else:
        net = ResNet(int(network.removeprefix("resnet")), made, classes, large=weights[0].shape[-1] == 7)
    net.load_state_dict(matched(theirs, net.state_dict()))
    return net.eval()


def state_dict(found: Any) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, without counters.

    Raises:
        ValueError: there are none.
    """
    for key in ("state_dict", "model_state_dict", "model", "net", "weights"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError("this is no state dict of tensors: save net.state_dict()")
    return {name: value for name, value in found.items() if not name.endswith("num_batches_tracked")}


def is_threshold(name: str) -> bool:
    """Whether a tensor of this name is a threshold."""
    return name.rpartition(".")[2] in THRESHOLDS


def matched(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors under our names, in order.

    Raises:
        ValueError: another number of tensors, or another shape at some place.
    """
    result = {name: value for name, value in ours.items() if name.endswith("num_batches_tracked")}
    for choose in (False, True):
        names = [name for name in ours if name not in result and is_threshold(name) == choose]
        given = [(name, value) for name, value in theirs.items() if is_threshold(name) == choose]
        if choose and len(given) < len(names):
            given = _shared(given, len(names))
        if len(given) != len(names):
            what = "thresholds" if choose else "other tensors"
            raise ValueError(f"the checkpoint has {len(given)} {what}, this network has {len(names)}")
        for name, (their_name, value) in zip(names, given, strict=True):
            target = ours[name]
            if value.numel() != target.numel() or (value.ndim > 1 and value.shape != target.shape):
                raise ValueError(
                    f"'{their_name}' {list(value.shape)} stands where '{name}' {list(target.shape)} is expected: "
                    "another network, or layers in another order"
                )
            result[name] = value.reshape(target.shape)
    return result


def _shared(given: list[tuple[str, Tensor]], wanted: int) -> list[tuple[str, Tensor]]:
    """Thresholds of a stem and of blocks, those of blocks twice, if that is how many are wanted."""
    twice = given[:1] + [pair for pair in given[1:] for _ in range(2)]
    return twice if len(twice) == wanted else given


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--network", type=click.Choice(NETWORKS), required=True)
@click.option("--levels", type=click.IntRange(1), required=True, help="L that it was trained with.")
@click.option("--exporter", type=click.Choice(EXPORTERS), default="dynamo", show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), required=True)
def main(checkpoint: Path, network: str, levels: int, exporter: str, output: Path) -> None:
    """Write the QCFS network of CHECKPOINT as ONNX, and compare it with PyTorch on random images."""
    stored.check_target(output)
    try:
        net = load(checkpoint, network, levels)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    side = 224 if isinstance(net, ResNet) and isinstance(net.pool, nn.AvgPool2d) else getattr(net, "side", 32)
    images = torch.randn(8, 3, side, side, generator=torch.Generator().manual_seed(0))
    export(net, images[:2], output, exporter)
    largest, same = difference(net, output, images)
    click.echo(f"{output}: largest difference to PyTorch {largest:.2g}, {100 * same:.0f} % have the same class")


if __name__ == "__main__":
    main()
