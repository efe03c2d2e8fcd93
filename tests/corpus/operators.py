"""Every operator between spikes and an output: one small network each.

In all of them `r` and `q` are the spikes of two layers [N, 4, 6, 6], `s` is their difference (both signs), `h` is r
scaled to less than 1 and `p` is r + 1. An operator that is wrongly taken for linear, or a rate-exact one that is
wrongly emitted, gives an error that stays.
"""

from __future__ import annotations

import numpy as np
from helpers import numbers

from corpus.entry import Entry, text

C = {
    "w": numbers(4, 3, 3, 3, seed=1, scale=0.4),
    "w4": numbers(4, 4, 3, 3, seed=2, scale=0.3),
    "b4": numbers(4, seed=4, scale=0.2),
    "up": numbers(4, 4, 2, 2, seed=7, scale=0.4),
    "m": numbers(6, 5, seed=14, scale=0.5),
    "gain": np.abs(numbers(4, seed=18)) + np.float32(0.5),
    "gain6": np.abs(numbers(6, seed=19)) + np.float32(0.5),
    "b6": numbers(6, seed=20, scale=0.2),
    "leak": np.array([0.1, 0.3, -0.2, 0.5], np.float32).reshape(4, 1, 1),
    "part": np.float32(0.05),
    "zero": np.float32(0),
    "half": np.float32(0.5),
    "one": np.float32(1),
    "two": np.float32(2),
    "three": np.float32(3),
    "i_1": np.array([-1]),
    "i0": np.array([0]),
    "i1": np.array([1]),
    "i2": np.array([2]),
    "i3": np.array([3]),
    "i5": np.array([5]),
    "i23": np.array([2, 3]),
    "n2": np.int64(2),
    "n5": np.int64(5),
    "order": np.array([3, 1, 0, 2]),
    "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    "sizes": np.array([4, 8]),
    "flat": np.array([0, -1]),
    "tile": np.array([1, 2, 1, 1]),
    "wide": np.array([1, 3, 1, 1, 1]),
    "double": np.array([1, 1, 2, 2], np.float32),
    "none": np.array([], np.float32),
    "mask": np.arange(6) % 2 == 0,
    "points": np.random.default_rng(5).integers(0, 4, (5, 4, 6, 3)),
    "nd": np.array([[0, 1], [1, 3], [4, 0]]),
    "grid": np.random.default_rng(6).uniform(-0.95, 0.95, (5, 3, 3, 2)).astype(np.float32),
    "lengths": np.array([1, 2, 3, 4, 6]),
    "new": numbers(5, 4, 6, 3, seed=21),
    "rows": numbers(3, 4, 6, 6, seed=22),
}
BASE = (
    "c = Conv<pads=[1,1,1,1]>(x, w, b4) r = Relu(c) d = Conv<pads=[1,1,1,1]>(r, w4) q = Relu(d) s = Sub(r, q) "
    "h = Mul(r, part) p = Add(r, one) "
)


def op(name: str, body: str, outputs: str = "float[] y", **more: object) -> Entry:
    """The network of one operator."""
    return text(
        name, "float[N,3,6,6] x", outputs, BASE + body, **{"opset": 20, "steps": 48, "final": 0.07, **C, **more}
    )


def plain(names: str, argument: str, attributes: str = "", **more: object) -> list[Entry]:
    """Networks of operators that read one tensor."""
    return [op(name, f"y = {name}{attributes}({argument})", **more) for name in names.split()]


LINEAR = [
    *plain("Neg Identity GlobalAveragePool Flatten Dropout", "s"),
    *plain("Add Sub Sum Mean", "r, q"),
    *plain("Mul Div", "s, gain6"),
    op("Concat", "y = Concat<axis=3>(r, s)"),
    op("AveragePool", "y = AveragePool<kernel_shape=[3,2], pads=[1,1,1,1], ceil_mode=1, strides=[2,2]>(s)"),
    op("BatchNormalization", "y = BatchNormalization(s, gain, b4, b4, gain)"),
    op("Cast", "e = Cast<to=11>(s) y = Cast<to=1>(e)"),
    op("CastLike", "e = Cast<to=11>(s) y = CastLike(e, x)"),
    op("CenterCropPad", "y = CenterCropPad<axes=[2,3]>(s, sizes)"),
    op("Col2Im", "e = Reshape(s, cols) y = Col2Im(e, image, block)", cols=np.array([0, 16, 9]),
       image=np.array([4, 4]), block=np.array([2, 2])),
    op("Conv", "y = Conv<group=2>(s, pair)", pair=numbers(4, 2, 3, 3, seed=23)),
    op("ConvTranspose", "y = ConvTranspose<strides=[2,2]>(s, up, b4)"),
    op("CumSum", "y = CumSum<exclusive=1, reverse=1>(s, n2)"),
    op("DepthToSpace", 'y = DepthToSpace<blocksize=2, mode="CRD">(s)'),
    op("SpaceToDepth", "y = SpaceToDepth<blocksize=2>(s)"),
    op("Einsum", 'y = Einsum<equation="ncij,jk->nick">(s, m)'),
    op("Expand", "e = Unsqueeze(s, i1) y = Expand(e, wide)"),
    op("Gather", "y = Gather<axis=1>(s, order)"),
    op("GatherElements", "y = GatherElements<axis=1>(s, points)", fixed_batch=5),
    op("GatherND", "y = GatherND(s, nd)", fixed_batch=5),
    op("Gemm", "f = Flatten<axis=3>(s) y = Gemm<alpha=0.5, beta=2.0>(f, m, q0)", q0=numbers(5, seed=24)),
    op("GridSample", "y = GridSample(s, grid)", fixed_batch=5),
    op("MatMul", "y = MatMul(s, m)"),
    op("Pad", 'e = Pad<mode="wrap">(s, pads) y = Pad(e, pads, two)'),
    op("ReduceMean", "y = ReduceMean<keepdims=0>(s, i23)"),
    op("ReduceSum", "y = ReduceSum(s, i1)"),
    op("Reshape", "y = Reshape(s, flat)"),
    op("Resize", 'y = Resize<mode="cubic", coordinate_transformation_mode="align_corners">(s, none, double)'),
    op("Upsample", "y = Upsample(s, double)", opset=9),
    op("ReverseSequence", "e = Transpose<perm=[2,0,1,3]>(s) y = ReverseSequence(e, lengths)", fixed_batch=5),
    op("Slice", "y = Slice(s, i5, i0, i2, i_1)"),
    op("Split", "y, z = Split<axis=1, num_outputs=2>(s)", outputs="float[] y, float[] z"),
    op("Squeeze", "e = Slice(s, i1, i2, i3) y = Squeeze(e, i3)"),
    op("Unsqueeze", "y = Unsqueeze(s, i1)"),
    op("Tile", "y = Tile(s, tile)"),
    op("Transpose", "y = Transpose<perm=[3,0,2,1]>(s)"),
    op("Trilu", "y = Trilu<upper=0>(s, one_up)", one_up=np.int64(-1)),
    op("Where", "y = Where(mask, r, q)"),
]  # fmt: skip

SITES = [
    op("Relu", "y = Relu(s)"),
    op("Clip", "y = Clip(s, zero, two)"),
    op("Max", "y = Max(s, zero)"),
]

SMOOTH = [
    *plain("Abs Celu Cos Elu Erf Exp Gelu HardSigmoid HardSwish LeakyRelu Mish Selu Sigmoid Sin Softplus Softsign "
           "Tanh ThresholdedRelu", "s"),
    *plain("Acos Asin Atan Atanh Cosh Sinh Tan Asinh", "h"),
    *plain("Acosh Log Reciprocal Sqrt", "p"),
    *plain("Shrink", "s", "<lambd=0.3, bias=0.3>"),
    op("Swish", "y = Swish(s)", opset=24),
    op("PRelu", "y = PRelu(s, leak)"),
    op("Min", "y = Min(r, q, p)"),
    op("Maximum of two", "y = Max(r, q)"),
    op("Clip to -1, 1", "y = Clip(s, minus, one)", minus=np.float32(-1)),
    op("Product of two", "y = Mul(r, s)"),
    op("Quotient of two", "y = Div(s, p)"),
    op("Matrix product of two", "e = Transpose<perm=[0,1,3,2]>(q) y = MatMul(r, e)"),
    op("Convolution with temporal weights", "e = ReduceMean(r, i0) y = Conv(x3, e)", x3=numbers(2, 4, 8, 8, seed=25),
       fixed_batch=5),
    op("Pow", "y = Pow(p, three)"),
    op("Mod", "y = Mod<fmod=1>(p, big)", big=np.float32(100)),
    op("Softmax", "y = Softmax<axis=1>(s)"),
    op("LogSoftmax", "y = LogSoftmax<axis=1>(s)"),
    op("LayerNormalization", "y = LayerNormalization(s, gain6, b6)"),
    op("RMSNormalization", "y = RMSNormalization(s, gain6)", opset=23),
    op("InstanceNormalization", "y = InstanceNormalization(s, gain, b4)"),
    op("GroupNormalization", "y = GroupNormalization<num_groups=2>(s, gain, b4)", opset=21, outputs="float[N,4,6,6] y"),
    op("MeanVarianceNormalization", "y = MeanVarianceNormalization(s)", outputs="float[N,4,6,6] y", inferable=False),
    op("LpNormalization", "y = LpNormalization<axis=1>(p)"),
    op("LRN", "y = LRN<size=3, alpha=0.5>(s)"),
    op("MaxPool", "y = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1], strides=[2,2]>(s)"),
    op("LpPool", "y = LpPool<kernel_shape=[2,2]>(p)"),
    *plain("GlobalMaxPool GlobalLpPool", "s"),
    *[op(name, f"y = {name}(s, i23)") for name in "ReduceL1 ReduceL2 ReduceLogSumExp ReduceMax ReduceMin".split()],
    op("ReduceSumSquare", "y = ReduceSumSquare(s, i3)"),
    op("ReduceLogSum", "y = ReduceLogSum(p, i3)"),
    op("ReduceProd", "y = ReduceProd(p, i3)"),
    op("CumProd", "y = CumProd(p, n2)", opset=26),
    op("DFT", "e = Unsqueeze(s, i_1) y = DFT(e, empty, n2)", empty=np.int64(6)),
    op("STFT", "e = Reshape(s, signal) y = STFT(e, n5, window, long)", signal=np.array([0, -1, 1]),
       window=np.ones(8, np.float32), long=np.int64(8)),
    op("Det", "y = Det(h)"),
    op("RoiAlign", "y = RoiAlign<output_height=2, output_width=2>(s, boxes, which)",
       boxes=np.array([[0, 0, 4, 4], [1, 1, 5, 5]], np.float32), which=np.array([0, 0])),
    op("MaxRoiPool", "y = MaxRoiPool<pooled_shape=[2,2]>(r, rois)", rois=np.array([[0, 0, 0, 4, 4]], np.float32)),
    op("AffineGrid", "e = Reshape(s, many) f = Slice(e, i0, six, i1) k = Reshape(f, theta) y = AffineGrid(k, size)",
       many=np.array([0, -1]), six=np.array([6]), theta=np.array([-1, 2, 3]), size=np.array([5, 1, 3, 3]),
       fixed_batch=5),
    op("DeformConv", "e = Slice(h, i0, two_, i1) o = Resize(e, none, none, shape) y = DeformConv(r, k1, o)",
       two_=np.array([2]), shape=np.array([5, 2, 6, 6]), k1=numbers(3, 4, 1, 1, seed=26), fixed_batch=5, opset=22),
    op("RNN", "e = ReduceMean<keepdims=0>(s, i1) y, z = RNN<hidden_size=2>(e, wi, wr)", outputs="float[] y, float[] z",
       wi=numbers(1, 2, 6, seed=27), wr=numbers(1, 2, 2, seed=28)),
    op("GRU", "e = ReduceMean<keepdims=0>(s, i1) y, z = GRU<hidden_size=2>(e, wi, wr)", outputs="float[] y, float[] z",
       wi=numbers(1, 6, 6, seed=27), wr=numbers(1, 6, 2, seed=28)),
    op("LSTM", "e = ReduceMean<keepdims=0>(s, i1) y, z, l = LSTM<hidden_size=2>(e, wi, wr)",
       outputs="float[] y, float[] z, float[] l", wi=numbers(1, 8, 6, seed=27), wr=numbers(1, 8, 2, seed=28)),
    op("Attention", "y = Attention(r, q, s)", opset=23),
    op("RotaryEmbedding", "y = RotaryEmbedding(s, cosine, sine)", opset=23, cosine=numbers(5, 6, 3, seed=29),
       sine=numbers(5, 6, 3, seed=30), fixed_batch=5),
    op("NegativeLogLikelihoodLoss", "e = LogSoftmax<axis=1>(s) y = NegativeLogLikelihoodLoss(e, truth)",
       truth=np.random.default_rng(7).integers(0, 4, (5, 6, 6)), fixed_batch=5),
    op("SoftmaxCrossEntropyLoss", "y = SoftmaxCrossEntropyLoss(s, truth)",
       truth=np.random.default_rng(7).integers(0, 4, (5, 6, 6)), fixed_batch=5),
    op("ScatterElements", "y = ScatterElements<axis=3>(s, places, new)", fixed_batch=5, places=np.argsort(
        np.random.default_rng(8).random((5, 4, 6, 6)))[..., :3]),
    op("Scatter", "y = Scatter<axis=3>(s, places, new)", fixed_batch=5, opset=10, places=np.argsort(
        np.random.default_rng(8).random((5, 4, 6, 6)))[..., :3]),
    op("ScatterND", "y = ScatterND(s, three_, rows)", three_=np.array([[0], [2], [3]]), fixed_batch=5),
    op("TensorScatter", "y = TensorScatter(s, q2, where)", opset=24, fixed_batch=5, q2=numbers(5, 4, 2, 6, seed=31),
       where=np.array([0, 1, 2, 3, 4])),
    op("Compress", "y = Compress<axis=2>(s, mask)"),
    op("Dropout with its mask", "y, z = Dropout(s)", outputs="float[] y, bool[] z"),
]  # fmt: skip

JUMPS = [
    *plain("Ceil Floor Round Sign", "s", slope=None, final=0.2),
    *plain("Hardmax", "s", "<axis=1>", slope=None, final=0.2),
    *[op(name, f"e = {name}(s, far) y = Cast<to=1>(e)", far=np.float32(0.7), slope=None, final=0.2)
      for name in "Equal Greater GreaterOrEqual Less LessOrEqual".split() if name != "Equal"],
    op("Equal", "e = Equal(r, zero) y = Cast<to=1>(e)", slope=None, final=0.3),
    *[op(name, f"e = Greater(s, half) f = Less(s, two) k = {name}(e, f) y = Cast<to=1>(k)", slope=None, final=0.2)
      for name in "And Or Xor".split()],
    op("Not", "e = Greater(s, half) k = Not(e) y = Cast<to=1>(k)", slope=None, final=0.2),
    *[op(name, f"e = {name}<axis=1>(s) y = Cast<to=1>(e)", slope=None, final=0.2) for name in ("ArgMax", "ArgMin")],
    *[op(name, f"e = {name}(s) y = Cast<to=1>(e)", outputs="float[] y, float[] r", slope=None)
      for name in ("IsNaN", "IsInf")],
    op("OneHot", "e = ArgMax<axis=1, keepdims=0>(s) y = OneHot(e, n5, ends)", ends=np.array([0, 1], np.float32),
       slope=None, final=0.2),
    op("TopK", "y, z = TopK<axis=3>(s, i2)", outputs="float[] y, int64[] z", slope=None, final=0.2),
    op("NonZero", "e = Slice(p, i0, i1) y = NonZero(e)", outputs="int64[] y, float[] r", slope=None, fixed_batch=5),
    op("Unique", "e = ReduceMax<keepdims=0>(s) f = Unsqueeze(e, i0) y = Unique(f)", slope=None),
    op("MaxUnpool", "y0, z = MaxPool<kernel_shape=[2,2], strides=[2,2]>(s) "
       "y = MaxUnpool<kernel_shape=[2,2], strides=[2,2]>(y0, z)", slope=None, final=0.2),
    op("QuantizeLinear", "e = QuantizeLinear(s, fine) y = DequantizeLinear(e, fine)", slope=None,
       fine=np.float32(0.05)),
    op("DynamicQuantizeLinear", "e, f, g = DynamicQuantizeLinear(s) y = DequantizeLinear(e, f, g)", slope=None),
    op("ConvInteger", "e, f, g = DynamicQuantizeLinear(s) k = ConvInteger(e, whole, g) y0 = Cast<to=1>(k) "
       "y = Mul(y0, f)", whole=np.random.default_rng(9).integers(0, 9, (2, 4, 3, 3)).astype(np.uint8), slope=None,
       final=0.1),
    op("MatMulInteger", "e, f, g = DynamicQuantizeLinear(s) k = MatMulInteger(e, whole, g) y0 = Cast<to=1>(k) "
       "y = Mul(y0, f)", whole=np.random.default_rng(9).integers(0, 9, (6, 3)).astype(np.uint8), slope=None, final=0.1),
    op("QLinearConv", "e = QuantizeLinear(s, fine, mid) k = QLinearConv(e, fine, mid, whole, fine, mid, tall, mid) "
       "y = DequantizeLinear(k, tall, mid)", whole=np.random.default_rng(9).integers(0, 255, (2, 4, 3, 3)).astype(
        np.uint8), fine=np.float32(0.05), tall=np.float32(1), mid=np.uint8(128), slope=None, final=0.1),
    op("QLinearMatMul", "e = QuantizeLinear(s, fine, mid) k = QLinearMatMul(e, fine, mid, whole, fine, mid, tall, mid) "
       "y = DequantizeLinear(k, tall, mid)", whole=np.random.default_rng(9).integers(0, 255, (6, 3)).astype(np.uint8),
       fine=np.float32(0.05), tall=np.float32(0.5), mid=np.uint8(128), slope=None, final=0.1),
    *[op(name, f"e = Greater(s, half) f = Cast<to=7>(e) k = {name}(f, seven) y = Cast<to=1>(k)", slope=None,
         final=0.2, seven=np.int64(6)) for name in "BitwiseAnd BitwiseOr BitwiseXor".split()],
    op("BitwiseNot", "e = Greater(s, half) f = Cast<to=7>(e) k = BitwiseNot(f) y = Cast<to=1>(k)", slope=None,
       final=0.2),
    op("BitShift", 'e = Greater(s, half) f = Cast<to=13>(e) k = BitShift<direction="LEFT">(f, shift) '
       "y = Cast<to=1>(k)", slope=None, final=0.2, shift=np.uint64(2)),
    op("NonMaxSuppression", "e = Reshape(h, boxes) f = Slice(e, i0, i1) g = ReduceMean(f, i2) "
       "k = Transpose<perm=[0,2,1]>(g) y0 = NonMaxSuppression(f, k, n5, half) y = Cast<to=1>(y0)",
       boxes=np.array([0, 36, 4]), outputs="float[] y, float[] r", slope=None, fixed_batch=5, final=1.0),
]  # fmt: skip

STATIC = [
    *[op(name, f"e = {name}(s) f = Cast<to=1>(e) g = ReduceMax<keepdims=0>(f) y = Add(s, g)")
      for name in ("Shape", "Size")],
    op("ConstantOfShape", "e = Shape(s) f = ConstantOfShape<value = float[1] {2.0}>(e) y = Add(s, f)"),
    op("Constant", "f = Constant<value = float[1] {2.0}>() y = Add(s, f)"),
    op("EyeLike", "e = Transpose<perm=[2,3,0,1]>(x) f = Gather(e, n2) g = Gather(f, n2) k = EyeLike(g) "
       "l = ReduceMax<keepdims=0>(k) y = Add(s, l)"),
    op("Range", "e = Shape<start=3>(s) f = Squeeze(e) k = Range(nil, f, eins) l = Cast<to=1>(k) y = Add(s, l)",
       nil=np.int64(0), eins=np.int64(1)),
    *[op(name, f"e = Shape<start=3>(s) f = Squeeze(e) k = {name}(f) y = Mul(s, k)")
      for name in "BlackmanWindow HammingWindow HannWindow".split()],
    op("MelWeightMatrix", "k = MelWeightMatrix(i8, i10, i100, f0, f50) l = ReduceSum<keepdims=0>(k) y = Add(s, l)",
       i8=np.int64(8), i10=np.int64(10), i100=np.int64(100), f0=np.float32(1), f50=np.float32(50)),
]  # fmt: skip

ABSENT = {
    **dict.fromkeys("If Loop Scan SequenceMap".split(), "control flow on spikes is refused; static: corpus.graphs"),
    **dict.fromkeys(
        "Bernoulli Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike".split(),
        "random: refused, and two runs cannot be compared",
    ),
    **dict.fromkeys(
        "ConcatFromSequence SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength "
        "SplitToSequence Optional OptionalGetElement OptionalHasElement".split(),
        "sequences and optionals are no tensors: not tried yet",
    ),
    **dict.fromkeys(
        "ImageDecoder RegexFullMatch StringConcat StringNormalizer StringSplit TfIdfVectorizer".split(),
        "reads bytes or strings, which spikes never become",
    ),
    "BitCast": "a number's bits are no function that could converge",
}
"""Operators without a network here, and why."""

OPERATORS = [*LINEAR, *SITES, *SMOOTH, *JUMPS, *STATIC]
