"""The errors that a user can cause or meet, each with the exit code that the command line ends with.

A message is one line: what was found, in which node or file, what was expected, what to do.
Anything that is not an `FtbcError` is a bug and keeps its traceback.

==== ==================== ==========================================================
code error                meaning
==== ==================== ==========================================================
2    `ConfigError`        an option is unknown or has a value that cannot be used
2    `OutOfMemoryError`   a run takes more memory than there is
3    `ModelError`         the ONNX file cannot be read, or cannot be converted
4    `DataError`          calibration or evaluation data are missing or do not fit
5    `CalibrationError`   thresholds or biases could not be found
6    `DeviceError`        the device asked for is not there
7    `VerificationError`  the emitted model does not compute what its plan says
130  `InterruptError`     Ctrl-C, where something is kept that can be gone on with
==== ==================== ==========================================================

0 is success, 1 a bug (with a traceback), 130 an interruption (Ctrl-C).
"""

from __future__ import annotations


class FtbcError(Exception):
    """Base of every error that this package raises on purpose."""

    exit_code = 1

    def __str__(self) -> str:
        return " ".join(super().__str__().split())


class ConfigError(FtbcError):
    """An option is unknown, or its value cannot be used."""

    exit_code = 2


class OutOfMemoryError(ConfigError):
    """A run takes more memory than there is."""


class ModelError(FtbcError):
    """The ONNX model cannot be read, is invalid, or holds something that cannot be converted."""

    exit_code = 3


class DataError(FtbcError):
    """Calibration or evaluation data are missing, malformed, or do not fit the model's inputs."""

    exit_code = 4


class CalibrationError(FtbcError):
    """Thresholds or biases could not be determined from the data."""

    exit_code = 5


class DeviceError(FtbcError):
    """The device or execution provider that was asked for cannot be used."""

    exit_code = 6


class VerificationError(FtbcError):
    """The emitted model does not compute what its plan says: nothing is written."""

    exit_code = 7


class InterruptError(FtbcError):
    """Ctrl-C during work of which the finished part is kept; the message says how to go on."""

    exit_code = 130
