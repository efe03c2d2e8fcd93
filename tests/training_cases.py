"""What the tests of the training side have in common; without the extra `models`, those that import it are skipped."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra 'models'")
pytest.importorskip("onnxscript", reason="needs the extra 'models'")

MODELS = Path(__file__).parents[1] / "models"


@pytest.fixture
def models(monkeypatch):
    """Import a script of models/ by name."""
    monkeypatch.syspath_prepend(MODELS)
    threads = torch.get_num_threads()
    yield importlib.import_module
    torch.set_num_threads(threads)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def settle(net, images):
    """Give BatchNorms and thresholds values that differ from the first ones."""
    net.train()
    with torch.no_grad():
        net(images)
        for i, (name, parameter) in enumerate(net.named_parameters()):
            if name.endswith("threshold"):
                parameter.fill_(0.5 + 0.1 * (i % 7))
    return net.eval()


@pytest.fixture(scope="module")
def pixels(tmp_path_factory):
    """An npz of 48 images in two classes that are easy to tell apart."""
    rng = np.random.default_rng(0)
    label = np.arange(48) % 2
    image = rng.integers(0, 120, (48, 32, 32, 3)) + 100 * label[:, None, None, None]
    path = tmp_path_factory.mktemp("pixels") / "pixels.npz"
    np.savez(path, x=image.astype(np.uint8), y=label)
    return path
