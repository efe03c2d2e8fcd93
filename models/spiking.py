"""A spiking network in plain PyTorch, to compare with: time folded into the batch, [T*B, ...], as one would write it.

It is made from a normalised ANN and a plan of this project, so that it computes what the emitted ONNX files compute:
layers with weights run once on all T steps of all samples, neurons go through the T steps between them, and what comes
before the first neuron is computed once per sample. Convolutional networks with integrate-and-fire neurons only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from onnx import helper, numpy_helper
from torch import Tensor
from torch.nn import functional

Layer = Callable[..., Tensor]


class TimeBatched(torch.nn.Module):
    """The network of a plan whose neuron is ``if``."""

    def __init__(self, network: Any, plan: Any, device: str = "cpu") -> None:
        """Read weights, thresholds [C] and biases [T, C] onto a device.

        Raises:
            NotImplementedError: the network has an operator that this class does not know, or the plan another neuron.
        """
        super().__init__()
        if str(plan.neuron) != "if" or plan.reversed or plan.gains:
            raise NotImplementedError(
                f"the plan's neuron is {plan.neuron}: this class has plain integrate-and-fire only"
            )
        self.steps = plan.steps
        self.output = network.view.output_names[0]
        self.input = network.view.inputs[0].name
        constants = {
            tensor.name: torch.from_numpy(np.array(numpy_helper.to_array(tensor)))
            for tensor in network.view.graph.initializer
        }
        # shapes and bounds are read by the host
        self.constants = {name: t.to(device) if t.is_floating_point() else t for name, t in constants.items()}
        self.sites = {site.spikes: site for site in network.sites}
        shapes = {site.spikes: list(site.channel_shape[1:]) for site in network.sites}
        self.theta = {
            s.spikes: _tensor(plan.thresholds[s.name]).reshape(1, *shapes[s.spikes]).to(device) for s in network.sites
        }
        self.bias = {
            s.spikes: _tensor(plan.biases[s.name]).reshape(plan.steps, 1, *shapes[s.spikes]).to(device)
            for s in network.sites
        }
        self.nodes = [(self._layer(node), list(node.input), node.output[0]) for node in network.view.nodes]

    def forward(self, x: Tensor) -> Tensor:
        """The mean output over T steps, [B, ...]."""
        values = {**self.constants, self.input: x}
        spiking = set[str]()
        for layer, inputs, output in self.nodes:
            if output in self.sites:
                current = values[inputs[0]]
                if inputs[0] not in spiking:
                    current = current.expand(self.steps, *current.shape).flatten(0, 1)
                values[output] = self._fire(output, current)
                spiking.add(output)
                continue
            values[output] = layer(*(values.get(name) for name in inputs))
            if spiking & set(inputs):
                spiking.add(output)
        return values[self.output].unflatten(0, (self.steps, -1)).mean(0)

    def _fire(self, site: str, current: Tensor) -> Tensor:
        """Integrate-and-fire with soft reset from [T*B, ...] to [T*B, ...]."""
        theta, rows = self.theta[site], current.unflatten(0, (self.steps, -1))
        spikes = torch.empty_like(rows)
        v: Tensor = theta * 0.5
        for t in range(self.steps):
            u = (v + rows[t]) + self.bias[site][t]
            torch.mul(u >= theta, theta, out=spikes[t])
            v = u - spikes[t]
        return spikes.flatten(0, 1)

    def _layer(self, node: Any) -> Layer:
        given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.output[0] in self.sites:
            return lambda x, *_: x
        if node.op_type == "Conv":
            return _conv(given)
        if node.op_type == "AveragePool" and not given.get("ceil_mode", 0) and {1} >= {*given.get("dilations", ())}:
            return _average(given)
        if node.op_type == "Gemm" and not given.get("transA", 0) and given.get("alpha", 1) == given.get("beta", 1) == 1:
            turned = given.get("transB", 0)
            return lambda x, w, b=None: functional.linear(x, w if turned else w.T, b)
        if node.op_type == "GlobalAveragePool":
            return lambda x: x.mean(dim=(2, 3), keepdim=True)
        if node.op_type == "Flatten":
            axis = given.get("axis", 1)
            return lambda x: x.flatten(axis)
        if node.op_type == "Reshape":
            return lambda x, shape: x.reshape(len(x), *shape.tolist()[1:])
        if node.op_type == "Transpose":
            return lambda x: x.permute(*given["perm"]).contiguous()
        if node.op_type == "Pad":
            return lambda x, pads, *_: functional.pad(x, _torch_pads(pads.tolist()))
        if node.op_type == "Slice":
            return _slice
        if node.op_type == "Add":
            return torch.add
        raise NotImplementedError(f"{node.op_type} '{node.name}' with {', '.join(given) or 'no attributes'}")


def _average(given: dict[str, Any]) -> Layer:
    pads, counted = given.get("pads", [0, 0, 0, 0]), bool(given.get("count_include_pad", 0))
    if pads[:2] != pads[2:]:
        raise NotImplementedError(f"AveragePool with the pads {pads}")
    stride = given.get("strides", [1, 1])
    return lambda x: functional.avg_pool2d(x, given["kernel_shape"], stride, pads[:2], count_include_pad=counted)


def _conv(given: dict[str, Any]) -> Layer:
    pads = given.get("pads", [0, 0, 0, 0])
    options = {
        "stride": given.get("strides", 1),
        "dilation": given.get("dilations", 1),
        "groups": given.get("group", 1),
    }
    if pads[:2] == pads[2:]:
        return lambda x, w, b=None: functional.conv2d(x, w, b, padding=pads[:2], **options)
    sides = _torch_pads([0, 0, *pads[:2], 0, 0, *pads[2:]])
    return lambda x, w, b=None: functional.conv2d(functional.pad(x, sides), w, b, **options)


def _torch_pads(pads: list[int]) -> list[int]:
    """ONNX lists all beginnings, then all ends; PyTorch pairs, from the last axis on."""
    half = len(pads) // 2
    return [side for axis in reversed(range(half)) for side in (pads[axis], pads[half + axis])]


def _slice(x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor, steps: Tensor | None = None) -> Tensor:
    where = [slice(None)] * x.ndim
    strides = [1] * len(axes) if steps is None else steps.tolist()
    for axis, start, end, stride in zip(axes.tolist(), starts.tolist(), ends.tolist(), strides, strict=True):
        where[axis] = slice(start, min(end, x.shape[axis]), stride)
    return x[tuple(where)]


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(values))
