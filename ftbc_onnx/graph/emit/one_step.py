"""The step form: one time step, with the state as inputs and outputs, for streaming and for a caller who stops when he
likes.

Inputs besides the ANN's own: ``ftbc/step``, the number of the step from 0 (int64, []), and the states, each a tensor
that is handed back from the output of the same place before. Outputs: the ANN's own, as they would be if the run ended
after this step, ``ftbc/step/next``, and the states after it. Before step 0 a state is what `STATES` says: numbers that
broadcast, with axes of length 1; after it, it has the shape of its tensor, which its output declares: a caller whose
runtime fixes shapes broadcasts the start to it.

The biases of steps T and beyond are zero: what they made good is over by then, and the mean over t forgets the rest.
The input may change from step to step. It is run from scratch at every step, what does not depend on spikes included.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ftbc_onnx.errors import ModelError
from ftbc_onnx.graph.builder import GraphBuilder, LoopBody
from ftbc_onnx.graph.emit.carried import CarriedStep
from ftbc_onnx.graph.emit.full_start import is_shared
from ftbc_onnx.graph.emit.loop import Turn
from ftbc_onnx.graph.emit.step import StepEmitter
from ftbc_onnx.graph.emit.unrolled import Emitted, check_convertible, finish
from ftbc_onnx.graph.sites import Network
from ftbc_onnx.plan import SpikingPlan

STEP = "ftbc/step"
"""Input: the number of the step, int64, []."""

NEXT = "ftbc/step/next"
"""Output: the number of the next step."""

STATES = "ftbc_onnx.states"
"""Entry of the metadata: the states, a list of [input, output, initializer with the start]."""


@dataclass(frozen=True)
class State:
    """A state of the step form: names of the input and the output, and its value before the first step."""

    input: str
    output: str
    start: np.ndarray


def emit_step(network: Network, plan: SpikingPlan) -> Emitted:
    """One step of the spiking network of a plan; T of them are bit for bit the unrolled form.

    Args:
        network: the normalised ANN that the plan was made for.
        plan: sites, thresholds [C] and biases [T, C]; asynchronous.

    Raises:
        ModelError: the network has refusals, or tensors named as the emitted ones are, or no such readout; or the plan
            is synchronous, where a site fires once.
    """
    check_convertible(network, plan.readout)
    if plan.synchronous:
        raise ModelError("a synchronous network has no step form: its layers fire one after another")
    builder = GraphBuilder(network.view.opset)
    builder.reserve([*(value.name for value in network.view.inputs), STEP])
    StepEmitter(builder, network).keep_static()
    builder.promise([*network.view.output_names, NEXT])
    body = LoopBody(builder, STEP)
    step = CarriedStep(builder, network, body, last=plan.steps)
    turn = Turn(builder, network, plan, beyond=True)
    for output, value in turn.write(step).items():
        builder.alias(value, output)
    builder.alias(builder.op("Add", STEP, builder.constant(np.array(1, np.int64)), out="ftbc/following"), NEXT)
    info = helper.make_tensor_value_info
    inputs, outputs = [info(STEP, onnx.TensorProto.INT64, [])], [info(NEXT, onnx.TensorProto.INT64, [])]
    starts = {tensor.name: tensor for tensor in builder.initializers}
    kept, listed = [], []
    for carried in body.carried:
        start = np.asarray(numpy_helper.to_array(starts[carried.start]))
        dims: list[int | str | None] | None = None if carried.shape is None else list(carried.shape)
        if dims is not None:
            if is_shared(start.shape, tuple(dims)):
                dims = [1] * len(dims)
            start = start.reshape((1,) * (len(dims) - start.ndim) + start.shape)  # so that the rank never changes
        after = f"{carried.inside.removesuffix('/before')}/after"
        builder.alias(carried.after, after)
        kept.append(numpy_helper.from_array(start, f"{carried.inside}/start"))
        listed.append([carried.inside, after, kept[-1].name])
        inputs.append(info(carried.inside, carried.kind, None if dims is None else [None] * len(dims)))
        outputs.append(info(after, carried.kind, dims))
    model = finish(builder, network, inputs, outputs)
    model.graph.initializer.extend(kept)
    model.metadata_props.add(key=STATES, value=json.dumps(listed))
    return Emitted(model, tuple(turn.readouts), "step")


def read_states(model: onnx.ModelProto) -> list[State]:
    """The states of a model in the step form.

    Raises:
        ModelError: it is not in the step form, or the values before the first step are missing.
    """
    entry = next((entry.value for entry in model.metadata_props if entry.key == STATES), None)
    if entry is None:
        raise ModelError("the model is not in the step form: convert the ANN with --form step")
    values = {tensor.name: tensor for tensor in model.graph.initializer}
    listed = json.loads(entry)
    missing = [start for _, _, start in listed if start not in values]
    if missing:
        raise ModelError(
            f"initializer '{missing[0]}', a state before the first step, is missing: some tool removed what no node "
            "reads; convert the ANN again, and leave the file as it is"
        )
    return [State(name, after, np.asarray(numpy_helper.to_array(values[start]))) for name, after, start in listed]
