"""Networks for the tests of diagnosis, and the diagnosis of a plan."""

from __future__ import annotations

import numpy as np
import onnx
from helpers import numbers, parse
from networks import batches_of, network_of, source_of

from ftbc_onnx.diagnosis import Diagnosis, diagnose
from ftbc_onnx.plan import SpikingPlan
from ftbc_onnx.runtime import CPU

DEEP = """
deep (float[N,3,12,12] x) => (float[N,5] y) {
    c1 = Conv<pads=[1,1,1,1]>(x, w1, b1)
    r1 = Relu(c1)
    n1 = BatchNormalization(r1, scale, shift, mean, var)
    c2 = Conv<pads=[1,1,1,1]>(n1, w2)
    r2 = Relu(c2)
    p2 = MaxPool<kernel_shape=[2,2],strides=[2,2]>(r2)
    c3 = Conv<pads=[1,1,1,1]>(p2, w3)
    a3 = Add(c3, p2)
    r3 = Relu(a3)
    k3 = Concat<axis=1>(r3, p2)
    c4 = Conv(k3, w4)
    r4 = Relu(c4)
    p4 = GlobalAveragePool(r4)
    f4 = Flatten(p4)
    y = Gemm<transB=1>(f4, w5)
}
"""
"""A BatchNormalization that cannot be folded, a MaxPool, a sum and a Concat that skip."""


def deep() -> onnx.ModelProto:
    rng = np.random.default_rng(7)

    def weights(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)

    return parse(
        DEEP,
        w1=weights(8, 3, 3, 3),
        b1=numbers(8, seed=1, scale=0.1),
        scale=rng.uniform(0.8, 1.2, 8).astype(np.float32),
        shift=numbers(8, seed=2, scale=0.1),
        mean=rng.uniform(0.2, 0.6, 8).astype(np.float32),
        var=rng.uniform(0.5, 1.5, 8).astype(np.float32),
        w2=weights(8, 8, 3, 3),
        w3=weights(8, 8, 3, 3),
        w4=weights(12, 16, 1, 1),
        w5=weights(5, 12),
    )


SMOOTH = """
smooth (float[N,4] x) => (float[N,3] y) {
    h1 = Gemm<transB=1>(x, w1)
    s1 = Sigmoid(h1)
    h2 = Gemm<transB=1>(s1, w2)
    r2 = Relu(h2)
    q2 = Mul(r2, r2)
    h3 = Gemm<transB=1>(q2, w3)
    y = Softmax<axis=1>(h3)
}
"""


def smooth() -> onnx.ModelProto:
    return parse(SMOOTH, w1=numbers(6, 4), w2=numbers(6, 6, seed=1), w3=numbers(3, 6, seed=2))


def diagnosed(model: onnx.ModelProto, plan: SpikingPlan, x: np.ndarray, batch: int = 64) -> Diagnosis:
    return diagnose(network_of(model), plan, source_of(model, x=x), batches_of(batch), device=CPU)
