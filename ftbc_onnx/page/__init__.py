"""The report as one HTML page that needs nothing else: no network, no script, no file beside it.

    report -> figures (matplotlib) -> SVG in the page's colours -> page (jinja2)

matplotlib and jinja2 are the extra ``report``: they are imported when a page is made, not before.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ftbc_onnx.errors import ConfigError
from ftbc_onnx.whole import check_target, written_whole

LIBRARIES = ("matplotlib", "jinja2")


def check_libraries() -> None:
    """Refuse to make a page without the libraries that it takes.

    Raises:
        ConfigError: one is not installed.
    """
    missing = [name for name in LIBRARIES if find_spec(name) is None]
    if missing:
        raise ConfigError(f'an HTML report takes {" and ".join(missing)}: pip install "ftbc-onnx[report]"')


def check_page(target: Path, option: str) -> None:
    """Refuse a page that could not be written (`ftbc_onnx.whole.check_target`), or would not be taken for one."""
    check_target(target, option, ".html", ".htm")
    if target.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"{option} '{target}' is to be an HTML page: give a name that ends in .html")


def write_page(report: Mapping[str, Any], target: Path) -> None:
    """Write the page of a conversion's report.

    Args:
        report: `ConversionResult.report`, or the same read from JSON.
        target: the HTML file.

    Raises:
        ConfigError: a library is missing, or the file cannot be written.
    """
    check_libraries()
    text = import_module("ftbc_onnx.page.html").render(report)
    try:
        with written_whole(target) as partial:
            partial.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"'{target}' cannot be written ({error.strerror}): choose another place") from error


def write_pictures(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write every figure of the page as a PNG; the folder is made if it is not there.

    Raises:
        ConfigError: a library is missing, or the folder cannot be written.
    """
    check_libraries()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return list(import_module("ftbc_onnx.page.figures").save_all(report, folder))
    except OSError as error:
        raise ConfigError(f"'{folder}' cannot be written ({error.strerror}): choose another place") from error
