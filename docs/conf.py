"""The site: Sphinx reads the Markdown of the whole repository, so that a link means the same here as on GitHub.

python -m sphinx -W -c docs . site
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parent.parent

project = "ftbc-onnx"
author = "The ftbc-onnx developers"
root_doc = "docs/index"
include_patterns = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "models/README.md", "docs/**.md"]
exclude_patterns = [".*", "node_modules", "tests", "ftbc_onnx", "site", "build", "dist"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 4
default_role = "py:obj"  # `name` in a docstring: a link where the name is on the site, else plain
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_use_ivar = True

html_theme = "furo"
html_title = project
html_extra_path = ["_root"]  # an index.html that leads to root_doc
html_copy_source = False


def link_folders(_: Sphinx, docname: str, source: list[str]) -> None:
    """GitHub shows a folder where a link ends in ``/``; the site shows the folder's index page."""

    def linked(match: re.Match[str]) -> str:
        index = f"{match[1]}index.md"
        return f"]({index})" if (ROOT / docname).parent.joinpath(index).is_file() else match[0]

    source[0] = re.sub(r"\]\(([\w./-]+/)\)", linked, source[0])


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the hook."""
    app.connect("source-read", link_folders)
    return {"parallel_read_safe": True}
