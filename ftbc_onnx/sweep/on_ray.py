"""Tasks in a Ray cluster: the only door to ray. Paths of network and data must be the same on all of its machines."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from ftbc_onnx.errors import ConfigError, DeviceError


class RayWorkers:
    """A cluster of its own on this machine, or one that is there."""

    def __init__(self, address: str | None = None, cpus: int | None = None, threads: int = 1, gpus: float = 0) -> None:
        """Start or join a cluster.

        Args:
            address: of a cluster (``auto``, ``HOST:PORT``, ``ray://HOST:PORT``); None: one is started here and ended.
            cpus: cores of the cluster that is started; None: those of the machine.
            threads: cores that a task takes.
            gpus: GPUs that a task takes, or a part of one.

        Raises:
            ConfigError: ray is not installed.
            DeviceError: there is no such cluster, or it is too small for one task.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray  # noqa: PLC0415  # heavy, and an extra
        except ImportError as error:
            raise ConfigError('--ray needs the extra ray: pip install "ftbc-onnx[ray]"') from error
        if address is not None:
            _knock(address)
        self._ray = ray
        try:
            if address is None:
                ray.init(num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level="error")
            else:
                ray.init(address=address, log_to_driver=False, logging_level="error")
        except Exception as error:  # ray raises many kinds
            raise DeviceError(f"the Ray cluster ({address or 'local'}) cannot be used: {error}") from error
        self._task = {"num_cpus": threads, "num_gpus": gpus, "max_retries": 1}
        there = ray.cluster_resources()
        self.slots = int(there.get("CPU", 0) // threads)
        if gpus:
            self.slots = min(self.slots, int(there.get("GPU", 0) / gpus))
        if self.slots < 1:
            self.stop()
            raise DeviceError(
                f"the Ray cluster has {there.get('CPU', 0):g} cores and {there.get('GPU', 0):g} GPUs, fewer than the "
                f"{threads} and {gpus:g} of one task"
            )

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Future[Any]:
        """Have it called somewhere in the cluster."""
        future: Future[Any] = self._ray.remote(**self._task)(function).remote(*arguments).future()
        return future

    def stop(self) -> None:
        """Leave the cluster; one that was started here ends."""
        self._ray.shutdown()


def _knock(address: str) -> None:
    """Refuse an address (``HOST:PORT``) where nobody is, at once: ray itself would try for minutes.

    Raises:
        DeviceError: nobody answers.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise DeviceError(
            f"no Ray cluster answers at {address} ({error}): start one, or check --ray-address"
        ) from error
