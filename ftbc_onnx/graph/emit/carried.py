"""One time step that stands for all of them: the body of a Loop over time.

It is the step of `ftbc_onnx.graph.emit.step`, with its state handed from turn to turn instead of by name. Everything
starts from 0 or from what a neuron starts from, as numbers that broadcast; after the first turn a state has the shape
of its tensor. So turn 0 divides by 1 and adds 0, where the unrolled form does nothing: the same numbers.
"""

from __future__ import annotations

import numpy as np
import onnx

from ftbc_onnx.graph.builder import GraphBuilder, LoopBody
from ftbc_onnx.graph.emit.step import StepEmitter
from ftbc_onnx.graph.sites import Network
from ftbc_onnx.graph.view import Shape


class CarriedStep(StepEmitter):
    """Writes the temporal nodes once; a site's state, sums and totals are carried by the body."""

    def __init__(self, builder: GraphBuilder, network: Network, body: LoopBody, last: int | None = None) -> None:
        """Write into a body; with `last`, that row of a table stands for all steps behind it too."""
        super().__init__(builder, network)
        self._last = last
        self._body = body
        self._before: dict[str, str] = {}
        self._counts: dict[int, str] = {}
        self._turn: str | None = None

    def row(self, table: str) -> str:
        """The row of this step of a table [T, ...], as [1, ...]."""
        if self._turn is None:
            turn = self._body.turn
            if self._last is not None:
                turn = self._builder.op(
                    "Min", turn, self._builder.constant(np.array(self._last, np.int64)), out="ftbc/time/clipped"
                )
            self._turn = self._builder.reshape(turn, (1,), out="ftbc/time/turn")
        return self._builder.op("Gather", table, self._turn, out="ftbc/time/row", axis=0)

    def carry(self, name: str, kind: int = onnx.TensorProto.FLOAT, shape: Shape | None = None) -> str:
        """Declare a state that starts from 0, []; of this shape from then on (None: not known)."""
        zero = self._builder.constant(np.zeros((), onnx.helper.tensor_dtype_to_np_dtype(kind)))
        return self._body.carry(name, zero, kind, shape)

    def carry_state(self, name: str, start: tuple[str, ...], shape: Shape | None = None) -> tuple[str, ...]:
        """The state of some neurons before this step, declared with what it is before the first."""
        kind = onnx.TensorProto.FLOAT
        return tuple(self._body.carry(f"{name}/state{i}", value, kind, shape) for i, value in enumerate(start))

    def pass_on(self, before: tuple[str, ...], after: tuple[str, ...]) -> None:
        """What a state is before the next step."""
        for inside, name in zip(before, after, strict=True):
            self._body.pass_on(inside, name)

    def sum(self, tensor: str, t: int) -> str:
        """Name of the sum of a tensor's currents up to this step."""
        known = (tensor, t) in self._sums
        total = super().sum(tensor, t)
        if not known:
            self._body.pass_on(self._before[tensor], total)
        return total

    def _difference(self, tensor: str, t: int) -> str:
        current = super()._difference(tensor, t)
        self._body.pass_on(self._before[tensor], self._total(tensor, t))
        return current

    def _at(self, t: int) -> str:  # noqa: ARG002
        return "step"

    def _is_first(self, t: int) -> bool:  # noqa: ARG002
        return False

    def _count(self, t: int, like: str) -> str:  # noqa: ARG002
        return self.steps(self.kind(like))

    def _sum_before(self, tensor: str, t: int) -> str:  # noqa: ARG002
        return self._carried(tensor, "sum")

    def _total_before(self, tensor: str, t: int) -> str:  # noqa: ARG002
        return self._carried(tensor, "total")

    def _carried(self, tensor: str, what: str) -> str:
        """A tensor is made as currents, of which there is a sum, or as means, of which there is a total: one state."""
        if tensor not in self._before:
            shape = self._network.view.shape(tensor)
            self._before[tensor] = self.carry(f"{tensor}/{what}", self.kind(tensor), shape)
        return self._before[tensor]

    def steps(self, kind: int) -> str:
        """The number of steps up to this one, []."""
        if kind not in self._counts:
            one = self._builder.constant(np.array(1, np.int64))
            whole = self._builder.op("Add", self._body.turn, one, out="ftbc/time/whole")
            self._counts[kind] = self._builder.op("Cast", whole, to=kind, out="ftbc/time/steps")
        return self._counts[kind]
