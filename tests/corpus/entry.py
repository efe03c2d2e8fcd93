"""What an entry of the corpus is: a named network with inputs made from its own graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from helpers import numbers, parse
from onnx import TensorProto, helper

ROWS = 5


@dataclass(frozen=True)
class Entry:
    """A network and what may be asked of it.

    Attributes:
        name: unique in its file.
        make: makes the model.
        steps: T of the long run.
        slope: the fitted slope of log error against log t must be at most this; None: the function jumps (Floor,
            ArgMax), its error need not shrink like a power of t, and only the last error counts.
        final: the error after the last step must be at most this, relative to the mean size of the ANN's output.
        fixed: values of inputs that must not be random.
        fixed_batch: the batch that the file fixes (or its constants do); None: free.
        opset: version of the default domain, to skip what the installed onnxruntime is too old for.
        inferable: False where onnx's own strict shape inference rejects the network before it is converted.
    """

    name: str
    make: Callable[[], onnx.ModelProto]
    steps: int = 64
    slope: float | None = -0.7
    final: float = 0.05
    fixed: Mapping[str, np.ndarray] = field(default_factory=dict)
    fixed_batch: int | None = None
    opset: int = 17
    inferable: bool = True

    def __str__(self) -> str:
        return self.name

    def feeds(self, model: onnx.ModelProto, rows: int = ROWS) -> dict[str, np.ndarray]:
        """Inputs for a model: standard normal numbers, small integers, alternating truth values."""
        constants = {tensor.name for tensor in model.graph.initializer}
        values = [value for value in model.graph.input if value.name not in constants]
        return {v.name: self.fixed.get(v.name, _value(v, rows, seed)) for seed, v in enumerate(values)}


def _value(info: onnx.ValueInfoProto, rows: int, seed: int) -> np.ndarray:
    kind = info.type.tensor_type
    shape = [d.dim_value if d.HasField("dim_value") else rows for d in kind.shape.dim]
    if kind.elem_type == TensorProto.FLOAT:
        return numbers(*shape, seed=100 + seed)
    if kind.elem_type == TensorProto.BOOL:
        return (np.arange(int(np.prod(shape))) % 2 == 0).reshape(shape)
    dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
    return np.random.default_rng(seed).integers(0, 4, shape).astype(dtype)


def text(name: str, inputs: str, outputs: str, body: str, *, opset: int = 17, **more: object) -> Entry:
    """An entry written as ONNX text; of `more`, the fields of Entry are told apart from constants and `functions`."""
    names = ("steps", "slope", "final", "fixed", "fixed_batch", "inferable")
    options = {key: more.pop(key) for key in names if key in more}
    functions, domains = str(more.pop("functions", "")), str(more.pop("domains", ""))
    source = f"g ({inputs}) => ({outputs}) {{ {body} }}\n{functions}"
    return Entry(name, lambda: parse(source, opset=opset, domains=domains, **more), opset=opset, **options)
