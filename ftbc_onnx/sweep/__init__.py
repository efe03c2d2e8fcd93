"""A grid of conversions of one network, judged on calibration samples that none of them sees.

    grid -> points -> (results file: done already?) -> conversions, evaluation shards -> results file -> Pareto front

`ftbc_onnx.sweep.run.run_sweep` is the whole of it; `workers` says where the work is done, `results` what is remembered.
"""

from __future__ import annotations

from ftbc_onnx.sweep.grid import Grid, Point
from ftbc_onnx.sweep.run import SweepResult, run_sweep
from ftbc_onnx.sweep.workers import Processes, Serial, Workers

__all__ = ["Grid", "Point", "Processes", "Serial", "SweepResult", "Workers", "run_sweep"]
