"""What several test files share: ONNX text to model, runs, comparisons, and the promises every written model keeps."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort
from onnx import helper, numpy_helper, shape_inference

from ftbc_onnx.graph.normalise import infer_shapes
from ftbc_onnx.graph.sites import Network
from ftbc_onnx.plan import SpikingPlan

Feeds = Mapping[str, np.ndarray]

TOOLS = Path(__file__).resolve().parent.parent / "tools"


def parse(
    text: str, opset: int = 17, ir_version: int | None = None, domains: str = "", **constants: np.ndarray
) -> onnx.ModelProto:
    """A model from ONNX text without a header: ``graph (float[N,3] x) => (float[N,3] y) { y = Relu(x) }``.

    Args:
        text: the graph (and functions after it).
        opset: version of the default domain.
        ir_version: of the file; the oldest that the opset takes if None (4 at least: constants need not be inputs).
        domains: more opset imports, as text: ``"custom" : 1``.
        constants: more initializers.
    """
    version = ir_version or max(
        4, helper.find_min_ir_version_for([helper.make_opsetid("", opset)], ignore_unknown=True)
    )
    more = f", {domains}" if domains else ""
    model = onnx.parser.parse_model(f'<ir_version: {version}, opset_import: ["" : {opset}{more}]>\n{text}')
    for name, value in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return model


def numbers(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    """Seeded standard normal numbers in float32."""
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def eighths(*shape: int, seed: int = 0, low: int = -8, high: int = 8) -> np.ndarray:
    """Seeded multiples of 1/8: sums and products of a few of them are exact in float32."""
    return (np.random.default_rng(seed).integers(low, high + 1, shape) / 8).astype(np.float32)


def session(model: onnx.ModelProto, optimise: bool = True) -> ort.InferenceSession:
    """An onnxruntime session on the CPU, quiet."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimise else level.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(model: onnx.ModelProto, feeds: Feeds, optimise: bool = True) -> dict[str, np.ndarray]:
    """Outputs of one run, by name."""
    opened = session(model, optimise)
    names = [value.name for value in opened.get_outputs()]
    return dict(zip(names, opened.run(names, dict(feeds)), strict=True))


@cache
def newest_opset() -> int:
    """The newest opset that both onnx and onnxruntime take."""
    for version in range(onnx.defs.onnx_opset_version(), 13, -1):
        try:
            session(parse("g (float[2] x) => (float[2] y) { y = Relu(x) }", opset=version))
        except Exception:
            continue
        return version
    return 13


OPSETS = sorted({13, 15, 17, 18, 20, 21, newest_opset()})


def assert_close(actual: np.ndarray, expected: np.ndarray, steps: float = 64) -> None:
    """Equal up to `steps` roundings of float32, relative to the largest number of the tensor."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    if actual.dtype.kind != "f":
        np.testing.assert_array_equal(actual, expected)
        return
    size = float(np.max(np.abs(expected), initial=1.0))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=steps * size * float(np.finfo(np.float32).eps))


def assert_same_function(before: onnx.ModelProto, after: onnx.ModelProto, feeds: Feeds) -> None:
    """Both models have the same outputs, by name and order, and give the same numbers."""
    expected, actual = run(before, feeds), run(after, feeds)
    assert list(actual) == list(expected)
    for name in expected:
        assert_close(actual[name], expected[name])


def assert_valid(model: onnx.ModelProto) -> None:
    """What every model promises: the checker is content, strict inference too, node names are unique."""
    onnx.checker.check_model(model, full_check=True)
    shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)


def ops(model: onnx.ModelProto) -> list[str]:
    """Operators in the order of the nodes."""
    return [node.op_type for node in model.graph.node]


def node_of(model: onnx.ModelProto, op_type: str) -> onnx.NodeProto:
    """The only node of this operator."""
    (node,) = (node for node in model.graph.node if node.op_type == op_type)
    return node


def constant(model: onnx.ModelProto, name: str) -> np.ndarray:
    """Value of an initializer."""
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    return numpy_helper.to_array(tensor)


def apply(change: Callable[[gs.Graph], int], model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """One pass on one model: (what it became, how often it applied). The model given is left alone."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = gs.import_onnx(infer_shapes(copy))
    count = change(graph)
    graph.toposort()
    after = gs.export_onnx(graph, do_type_check=False)
    after.ir_version = model.ir_version
    return after, count


def make_plan(
    network: Network, steps: int, threshold: float | Mapping[str, np.ndarray] = 1.0, bias: float = 0.0, seed: int = 0
) -> SpikingPlan:
    """A plan with the same threshold everywhere, or one array per site, and seeded biases of size `bias`."""
    rng = np.random.default_rng(seed)
    given = isinstance(threshold, Mapping)
    thresholds = {s.name: threshold[s.name] if given else np.full(s.channels, threshold) for s in network.sites}
    biases = {s.name: bias * rng.standard_normal((steps, s.channels)) for s in network.sites}
    return SpikingPlan("0" * 64, network.sites, steps, "if", thresholds, biases)


def tool(name: str) -> ModuleType:
    """A script of tools/, under its own name, so that it can be imported by the next."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]
