"""Changes to the ANN before anything is unrolled. One change, one file; `PASSES` is the order of a round.

A pass is a function from a graphsurgeon graph to the number of places it changed (it changes the graph it is given,
which `ftbc_onnx.graph.normalise` made for it). It leaves the ANN's outputs as they were, up to float rounding where
weights are multiplied out. `normalise` repeats the round, with fresh shapes, until nothing changes.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_graphsurgeon as gs

from ftbc_onnx.graph.passes.compare_to_relu import compare_to_relu
from ftbc_onnx.graph.passes.constant_shapes import constant_shapes
from ftbc_onnx.graph.passes.copy_axes import copy_axes
from ftbc_onnx.graph.passes.dense_layers import dense_layers
from ftbc_onnx.graph.passes.drop_noops import drop_noops
from ftbc_onnx.graph.passes.fold_affine import fold_affine
from ftbc_onnx.graph.passes.fold_batchnorm import fold_batchnorm
from ftbc_onnx.graph.passes.fold_constants import fold_constants
from ftbc_onnx.graph.passes.merge_clips import merge_clips
from ftbc_onnx.graph.passes.pool_first import pool_first
from ftbc_onnx.graph.passes.shrink_broadcasts import shrink_broadcasts
from ftbc_onnx.graph.passes.sink_transposes import sink_transposes

PASSES: tuple[Callable[[gs.Graph], int], ...] = (
    drop_noops,
    fold_constants,
    constant_shapes,
    copy_axes,
    shrink_broadcasts,
    sink_transposes,
    compare_to_relu,
    merge_clips,
    dense_layers,
    fold_batchnorm,
    fold_affine,
    pool_first,
)
