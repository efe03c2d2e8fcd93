"""The neurons, by name. A neuron is one file; adding one touches that file and one line of `NEURONS`."""

from __future__ import annotations

from ftbc_onnx.errors import ConfigError
from ftbc_onnx.neurons.bipolar import Bipolar
from ftbc_onnx.neurons.integrate_and_fire import IntegrateAndFire
from ftbc_onnx.neurons.protocol import Neuron

NEURONS: dict[str, Neuron] = {
    "if": IntegrateAndFire(),
    "bipolar": Bipolar(),
}


def get_neuron(name: str) -> Neuron:
    """The neuron called `name`.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in NEURONS:
        raise ConfigError(f"unknown neuron '{name}': choose one of {', '.join(sorted(NEURONS))}")
    return NEURONS[name]


__all__ = ["NEURONS", "Neuron", "get_neuron"]
