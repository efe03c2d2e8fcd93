"""Every command and every script in the guides does what the page says; in order, in a folder of their own.

Only blocks that take a library or a machine that is not there are skipped, and named. What a guide shows of the output
is compared without its numbers: those depend on versions.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from guides import ROOT, Block, blocks, prepare, run, shape
from helpers import numbers, parse
from PIL import Image

GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))
PAGES = [ROOT / "README.md", *(ROOT / "docs" / f"{n}.md" for n in "report diagnose sweep nir errors".split()), *GUIDES]

NEEDS = {
    "keras.md": ("tensorflow", "tf2onnx"),
    "nir.md": ("nir",),
    "pytorch.md": ("torch", "onnxscript"),
    "report.md": ("jinja2", "matplotlib"),
    "scikit-learn.md": ("sklearn", "skl2onnx"),
}
"""Libraries that a page is about."""


def digits(folder: Path) -> None:
    """`model.onnx` with its data: the digits, few of them."""
    (folder / "model.onnx").write_bytes((ROOT / "models" / "digits_relu.onnx").read_bytes())
    for name, source, count in (("calib", "calibration", 64), ("test", "test", 40)):
        data = np.load(ROOT / "models" / f"digits_{source}.npz")
        np.savez(folder / f"{name}.npz", **{key: value[:count] for key, value in data.items()})


def photographs(folder: Path) -> None:
    """`model.onnx` for images [N, 3, 224, 224] with arrays, and the same as folders of images."""
    model = parse(
        """g (float[N,3,224,224] image) => (float[N,2] logits) {
            current = Conv <strides = [32, 32]> (image, w)
            active = Relu(current)
            mean = GlobalAveragePool(active)
            logits = Flatten(mean)
        }""",
        w=numbers(2, 3, 32, 32, scale=0.03),
    )
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    rng = np.random.default_rng(0)
    np.savez(folder / "calib.npz", image=numbers(16, 3, 224, 224))
    np.savez(folder / "test.npz", image=numbers(8, 3, 224, 224, seed=1), label=np.arange(8) % 2)
    for part in ("train_images", "val_images"):
        for kind in ("cat", "dog"):
            (folder / part / kind).mkdir(parents=True)
            for i in range(8):
                pixels = rng.integers(0, 256, (40, 50, 3), np.uint8)
                Image.fromarray(pixels).save(folder / part / kind / f"{i}.png")
    config = {"size": {"shortest_edge": 256}, "crop_size": 224, "image_mean": [0.485] * 3, "image_std": [0.229] * 3}
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "ViTImageProcessor", **config})
    )


FILES: dict[str, Callable[[Path], None]] = {"README.md": photographs, "report.md": digits}
"""What stands for the reader's own files."""


def why_not(page: Path, block: Block) -> str | None:
    """Why a block cannot run here, or None."""
    missing = [name for name in NEEDS.get(page.name, ()) if find_spec(name) is None]
    if missing:
        return f"{' and '.join(missing)} not installed"
    return "takes a Ray cluster with GPUs" if "--ray-address" in block.text else None


class Outcome(NamedTuple):
    """What became of a page: blocks that ran, and those that did not with their reason."""

    ran: int
    skipped: list[str]


def run_page(page: Path, folder: Path) -> Outcome:
    """Run the blocks of a page in order, and compare what a guide shows with what was printed above it."""
    prepare(folder)
    FILES.get(page.name, lambda _: None)(folder)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    printed: list[str] = []
    skipped: list[str] = []
    ran = 0
    for block in blocks(page):
        if block.language in ("sh", "python"):
            reason = why_not(page, block)
            if reason:
                skipped.append(f"{page.name}:{block.line}: {reason}")
                continue
            printed += shape(run(block, folder, environment))
            ran += 1
        elif block.language == "text" and page in GUIDES and ran:
            for line in shape(block.text):
                assert any(line in other for other in printed), f"{page}:{block.line}: nothing printed has {line!r}"
    return Outcome(ran, skipped)


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Path, Future]]:
    """The pages that are asked for, run side by side: they wait for other processes."""
    calls = [item.callspec for item in request.session.items if getattr(item, "originalname", None) == "test_page"]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        pages = [call.params["page"] for call in calls if "page" in call.params]
        yield {page: pool.submit(run_page, page, tmp_path_factory.mktemp(page.stem)) for page in pages}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page(page: Path, outcomes: dict[Path, Future[Outcome]]) -> None:
    ran, skipped = outcomes[page].result()
    assert ran or skipped, f"{page} has no command"
    if skipped:
        pytest.skip(f"{'; '.join(skipped)} ({ran} other blocks ran)")


def test_every_guide_shows_its_code() -> None:
    """A block in another language would not be run; a page that shows output shows what printed it."""
    for page in GUIDES:
        languages = [block.language for block in blocks(page)]
        assert set(languages) <= {"sh", "python", "text"}, page
        assert languages[0] in ("sh", "python"), page


def test_a_block_that_fails_is_noticed(tmp_path: Path) -> None:
    prepare(tmp_path)
    for text in ("ftbc-onnx inspect nothere.onnx\n", "false | true\n", "pip install '.[nothing]'\n"):
        with pytest.raises(AssertionError, match="exit code"):
            run(Block("sh", text, 1), tmp_path, dict(os.environ))
    with pytest.raises(AssertionError, match="exit code 1"):
        run(Block("python", "assert False\n", 1), tmp_path, dict(os.environ))
