"""Converts a trained ANN in ONNX into a spiking network in ONNX that plain onnxruntime runs."""

from ftbc_onnx.config import ConvertConfig
from ftbc_onnx.errors import (
    CalibrationError,
    ConfigError,
    DataError,
    DeviceError,
    FtbcError,
    ModelError,
    OutOfMemoryError,
    VerificationError,
)
from ftbc_onnx.pipeline import ConversionResult, convert
from ftbc_onnx.plan import Refusal, SpikingPlan, SpikingSite
from ftbc_onnx.preprocessing import Preprocessing
from ftbc_onnx.step_runner import StepRunner

__all__ = [
    "CalibrationError",
    "ConfigError",
    "ConversionResult",
    "ConvertConfig",
    "DataError",
    "DeviceError",
    "FtbcError",
    "ModelError",
    "OutOfMemoryError",
    "Preprocessing",
    "Refusal",
    "SpikingPlan",
    "SpikingSite",
    "StepRunner",
    "VerificationError",
    "convert",
]
